#include "planner/names/torch_dtypes.h"

#include <algorithm>
#include <array>
#include <utility>

namespace shardwright {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 17> names{{
    {DType::BOOL, "bool"},
    {DType::U8, "uint8"},
    {DType::I8, "int8"},
    {DType::U16, "uint16"},
    {DType::I16, "int16"},
    {DType::U32, "uint32"},
    {DType::I32, "int32"},
    {DType::U64, "uint64"},
    {DType::I64, "int64"},
    {DType::F8_E4M3, "float8_e4m3fn"},
    {DType::F8_E5M2, "float8_e5m2"},
    {DType::F8_E8M0, "float8_e8m0fnu"},
    {DType::F16, "float16"},
    {DType::BF16, "bfloat16"},
    {DType::F32, "float32"},
    {DType::F64, "float64"},
    {DType::C64, "complex64"},
}};

}  // namespace

std::string_view torch_name_of(DType dtype) {
  const auto found =
      std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.first == dtype; });
  return found == names.end() ? std::string_view() : found->second;
}

std::optional<DType> dtype_of_torch(std::string_view name) {
  const auto found =
      std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.second == name; });
  if (found == names.end()) return std::nullopt;
  return found->first;
}

}  // namespace shardwright
