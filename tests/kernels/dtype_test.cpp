#include "kernels/dtype.h"

#include <gtest/gtest.h>

namespace shardwright {
namespace {

TEST(DTypeTable, EveryDtypeIsFoundByItsName) {
  for (int index = 0; index <= static_cast<int>(DType::C64); ++index) {
    const auto dtype = static_cast<DType>(index);
    EXPECT_EQ(dtype_named(name_of(dtype)), dtype) << name_of(dtype);
  }
}

TEST(DTypeTable, NamesThatSafetensorsDoesNotHaveAreNobodys) {
  for (const char* name : {"", "bf16", "BF16 ", "FLOAT", "F8", "I4"})
    EXPECT_EQ(dtype_named(name), std::nullopt) << name;
}

TEST(DTypeTable, SizesAreThoseOfTheFormats) {
  EXPECT_EQ(bytes_of(DType::BOOL), 1);
  EXPECT_EQ(bytes_of(DType::F8_E4M3), 1);
  EXPECT_EQ(bytes_of(DType::BF16), 2);
  EXPECT_EQ(bytes_of(DType::I32), 4);
  EXPECT_EQ(bytes_of(DType::F64), 8);
  EXPECT_EQ(bytes_of(DType::C64), 8);
  EXPECT_EQ(bits_of(DType::F4), 4);
  EXPECT_EQ(bits_of(DType::I4), 4);
  EXPECT_EQ(bits_of(DType::F6_E3M2), 6);
}

TEST(DTypeTable, PackedFormatsHaveNoBytesOfTheirOwn) {
  for (const DType dtype : {DType::F4, DType::I4, DType::F6_E2M3, DType::F6_E3M2})
    EXPECT_EQ(bytes_of(dtype), 0);
}

TEST(DTypeTable, OnlyRealFloatsOf16BitsOrMoreAreWide) {
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32, DType::F64})
    EXPECT_TRUE(is_wide_float(dtype));
  for (const DType dtype : {DType::F8_E4M3, DType::F8_E8M0, DType::C64, DType::I64}) {
    EXPECT_FALSE(is_wide_float(dtype));
  }
}

}  // namespace
}  // namespace shardwright
