#include "kernels/value_range.h"

namespace shardwright {
namespace {

/// The numbers of a dtype: up to `digits` significant bits, none of them worth less than 2^lowest, and
/// magnitudes below 2^highest (of signed integers the least one lies just there).
struct ValueRange {
  int digits;
  int lowest;
  int highest;
  bool negative = true;
  bool infinite = false;
  bool complex = false;
};

ValueRange range_of(DType dtype) {
  switch (dtype) {
    case DType::BOOL:
      return {1, 0, 1, false};
    case DType::U8:
    case DType::U16:
    case DType::U32:
    case DType::U64:
      return {bits_of(dtype), 0, bits_of(dtype), false};
    case DType::I8:
    case DType::I16:
    case DType::I32:
    case DType::I64:
      return {bits_of(dtype) - 1, 0, bits_of(dtype) - 1};
    case DType::I4:
      return {3, 0, 3};
    case DType::F4:
      return {2, -1, 3};
    case DType::F6_E2M3:
      return {4, -3, 3};
    case DType::F6_E3M2:
      return {3, -4, 5};
    case DType::F8_E4M3:
      return {4, -9, 9};
    case DType::F8_E5M2:
      return {3, -16, 16, true, true};
    case DType::F8_E8M0:
      return {1, -127, 128, false};
    case DType::F16:
      return {11, -24, 16, true, true};
    case DType::BF16:
      return {8, -133, 128, true, true};
    case DType::F32:
      return {24, -149, 128, true, true};
    case DType::F64:
      return {53, -1074, 1024, true, true};
    case DType::C64:
      return {24, -149, 128, true, true, true};
  }
  return {};
}

}  // namespace

bool holds_all(DType to, DType from) {
  if (to == from) return true;
  if (to == DType::F8_E8M0) return false;  // it has no zero, which all others have
  const ValueRange wide = range_of(to);
  const ValueRange narrow = range_of(from);
  return narrow.digits <= wide.digits && narrow.lowest >= wide.lowest && narrow.highest <= wide.highest &&
         narrow.negative <= wide.negative && narrow.infinite <= wide.infinite &&
         narrow.complex <= wide.complex;
}

}  // namespace shardwright
