#include "kernels/dtype.h"

#include <array>
#include <cstddef>

namespace shardwright {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  int bits;
};

// In the order of the enumeration, so that a dtype is its own index.
constexpr std::array<Row, 21> rows{{
    {DType::BOOL, "BOOL", 8},       {DType::U8, "U8", 8},           {DType::I8, "I8", 8},
    {DType::U16, "U16", 16},        {DType::I16, "I16", 16},        {DType::U32, "U32", 32},
    {DType::I32, "I32", 32},        {DType::U64, "U64", 64},        {DType::I64, "I64", 64},
    {DType::F4, "F4", 4},           {DType::F6_E2M3, "F6_E2M3", 6}, {DType::F6_E3M2, "F6_E3M2", 6},
    {DType::F8_E4M3, "F8_E4M3", 8}, {DType::F8_E5M2, "F8_E5M2", 8}, {DType::F8_E8M0, "F8_E8M0", 8},
    {DType::F16, "F16", 16},        {DType::BF16, "BF16", 16},      {DType::F32, "F32", 32},
    {DType::F64, "F64", 64},        {DType::C64, "C64", 64},        {DType::I4, "I4", 4},
}};

constexpr bool rows_follow_the_enumeration() {
  for (std::size_t index = 0; index < rows.size(); ++index) {
    if (static_cast<std::size_t>(rows[index].dtype) != index) return false;
  }
  return static_cast<std::size_t>(DType::I4) + 1 == rows.size();
}
static_assert(rows_follow_the_enumeration());

const Row& row_of(DType dtype) { return rows[static_cast<std::size_t>(dtype)]; }

}  // namespace

int bits_of(DType dtype) { return row_of(dtype).bits; }

int bytes_of(DType dtype) { return row_of(dtype).bits / 8; }

std::string_view name_of(DType dtype) { return row_of(dtype).name; }

std::optional<DType> dtype_named(std::string_view name) {
  for (const Row& row : rows) {
    if (row.name == name && row.dtype != DType::I4) return row.dtype;
  }
  return std::nullopt;
}

bool is_float8(DType dtype) { return dtype == DType::F8_E4M3 || dtype == DType::F8_E5M2; }

bool is_packed(DType dtype) { return dtype == DType::F4 || dtype == DType::I4; }

bool is_wide_float(DType dtype) {
  return dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::F32 || dtype == DType::F64;
}

}  // namespace shardwright
