#pragma once

// Random tiles, and destinations with something around them that has to stay as it is.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "slow_definition.h"

namespace shardwright {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// Uniform in [first, last].
  std::int64_t number(std::int64_t first, std::int64_t last) {
    return std::uniform_int_distribution<std::int64_t>(first, last)(engine_);
  }
  bool chance(int one_in) { return number(1, one_in) == 1; }

  template <class T>
  T one_of(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(number(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }

  std::vector<std::uint8_t> bytes(std::int64_t count) {
    std::vector<std::uint8_t> result(static_cast<std::size_t>(count));
    for (std::uint8_t& byte : result) byte = static_cast<std::uint8_t>(engine_());
    return result;
  }

 private:
  std::mt19937_64 engine_;
};

/// A source tile of random bytes at a random, unaligned place with a random distance between rows.
struct RandomSource {
  std::vector<std::uint8_t> memory;
  SourceTile tile;

  RandomSource(Random& random, DType dtype, std::int64_t rows, std::int64_t columns) {
    const bool is_packed = bytes_of(dtype) == 0;
    const bool in_high_nibble = is_packed && random.chance(2);
    std::int64_t row_stride = columns + (random.chance(2) ? 0 : random.number(1, 70));
    if (is_packed) row_stride = (row_stride + (in_high_nibble ? 1 : 0) + 1) / 2 * 2;
    const std::int64_t offset = random.number(0, 70);
    memory = random.bytes(offset + rows * row_stride * bits_of(dtype) / 8);
    tile = {memory.data() + offset, dtype, rows, columns, row_stride, in_high_nibble};
  }
};

enum class Strides { straight, transposed, any };

/// A destination of rows x columns with random strides and a random alignment, in memory full of a pattern.
struct RandomDestination {
  std::vector<std::uint8_t> memory;
  std::int64_t origin = 0;  ///< bytes
  DestinationTile tile;

  RandomDestination(Random& random, DType dtype, std::int64_t rows, std::int64_t columns, Strides strides) {
    std::int64_t row_stride = 0;
    std::int64_t column_stride = 0;
    const auto gap = [&random] { return random.chance(2) ? 0 : random.number(1, 70); };
    if (strides == Strides::straight) {
      column_stride = 1;
      row_stride = columns + gap();
      if (random.chance(4)) row_stride = -row_stride;
    } else if (strides == Strides::transposed) {
      row_stride = 1;
      column_stride = rows + gap();
      if (random.chance(2)) column_stride = (column_stride + 63) / 64 * 64;
      if (random.chance(4)) column_stride = -column_stride;
    } else if (random.chance(2)) {
      column_stride = random.number(1, 3);
      row_stride = column_stride * std::max<std::int64_t>(columns, 1) + gap();
    } else {
      row_stride = random.number(1, 3);
      column_stride = row_stride * std::max<std::int64_t>(rows, 1) + gap();
    }
    if (strides == Strides::any) {
      if (random.chance(3)) row_stride = -row_stride;
      if (random.chance(3)) column_stride = -column_stride;
    }
    const std::int64_t size = bytes_of(dtype);
    const std::int64_t row_reach = std::max<std::int64_t>(rows - 1, 0) * row_stride;
    const std::int64_t column_reach = std::max<std::int64_t>(columns - 1, 0) * column_stride;
    const std::int64_t before =
        std::max<std::int64_t>(-row_reach, 0) + std::max<std::int64_t>(-column_reach, 0);
    const std::int64_t after = std::max<std::int64_t>(row_reach, 0) + std::max<std::int64_t>(column_reach, 0);
    constexpr std::int64_t guard = 256;
    origin = guard + before * size +
             (random.chance(4) ? random.number(0, 63) : random.number(0, 63) / size * size);
    memory.resize(static_cast<std::size_t>(origin + (after + 1) * size + guard));
    for (std::size_t index = 0; index < memory.size(); ++index) {
      memory[index] = static_cast<std::uint8_t>(index * 37 + 11);
    }
    tile = {memory.data() + origin, dtype, row_stride, column_stride};
  }

  RandomDestination(const RandomDestination& other)
      : memory(other.memory), origin(other.origin), tile(other.tile) {
    tile.data = memory.data() + origin;
  }
  RandomDestination& operator=(const RandomDestination&) = delete;
};

/// Block-scaled formats that can be decoded.
struct Format {
  DType element;
  DType scale;
  Product product = Product::exact_once;
  bool code_eight_is_plus_zero = false;
  std::int64_t block_rows = 1;
  std::int64_t block_columns = 32;
  float global = 1;

  auto operator<=>(const Format&) const = default;

  slow::Scales scales() const { return {scale, product, global, code_eight_is_plus_zero}; }

  /// With one scale after the other for each row of blocks.
  BlockScales block_scales(const void* data, std::int64_t row_stride) const {
    return {data, row_stride, block_rows, block_columns, 0,
            0,    scale,      product,    global,        code_eight_is_plus_zero};
  }

  std::string name() const {
    static const char* const products[] = {"rounded once", "to F32 first", "ModelOpt's NVFP4",
                                           "compressed-tensors' NVFP4"};
    return std::string(name_of(element)) + " x " + std::string(name_of(scale)) + ", " +
           products[static_cast<std::size_t>(product)] + (code_eight_is_plus_zero ? ", code 8 is +0" : "") +
           ", blocks of " + std::to_string(block_rows) + " x " + std::to_string(block_columns);
  }
};

inline const std::vector<Format> formats = {
    // MXFP8, FP8 with scales for blocks, channels and tensors
    {DType::F8_E4M3, DType::F8_E8M0},
    {DType::F8_E5M2, DType::F8_E8M0},
    {DType::F8_E4M3, DType::F8_E8M0, Product::exact_once, false, 128, 128},
    {DType::F8_E4M3, DType::F32, Product::to_f32_first, false, 128, 128},
    {DType::F8_E5M2, DType::F32, Product::to_f32_first, false, 128, 128},
    {DType::F8_E4M3, DType::BF16, Product::to_f32_first, false, 1, 1000},
    {DType::F8_E5M2, DType::BF16, Product::to_f32_first},
    {DType::F8_E4M3, DType::F16, Product::to_f32_first},
    {DType::F8_E4M3, DType::BF16},
    // MXFP4: OCP's, DeepSeek's
    {DType::F4, DType::F8_E8M0},
    {DType::F4, DType::U8, Product::exact_once, true},
    // NVFP4, with a global scale that has all of F32's bits
    {DType::F4, DType::F8_E4M3, Product::modelopt_nvfp4, false, 1, 16, 0x1.A36E2Ep-14F},
    {DType::F4, DType::F8_E4M3, Product::compressed_tensors_nvfp4, false, 1, 16, 0x1.5F3D6Ap+12F},
    {DType::F4, DType::F8_E4M3, Product::exact_once, false, 1, 16},
    // INT4, and what else 4 bits may be scaled by
    {DType::I4, DType::BF16},
    {DType::I4, DType::BF16, Product::exact_once, false, 1, 128},
    {DType::I4, DType::F16},
    {DType::I4, DType::F32, Product::to_f32_first},
    {DType::I4, DType::F32},
    {DType::F4, DType::BF16},
    {DType::F4, DType::F32, Product::to_f32_first, false, 1, 16},
    // Plain elements times a factor
    {DType::BF16, DType::BF16, Product::exact_once, false, 1000, 1000},
    {DType::BF16, DType::F32, Product::exact_once, false, 1, 1},
    {DType::F16, DType::BF16},
    {DType::F32, DType::F32, Product::exact_once, false, 1000, 1000},
    {DType::F32, DType::F16, Product::to_f32_first},
};

/// Random scales for a tile, with blocks that it cuts anywhere.
struct RandomScales {
  std::vector<std::uint8_t> memory;
  BlockScales scales;

  RandomScales(Random& random, const Format& format, std::int64_t rows, std::int64_t columns) {
    const DType dtype = format.scale;
    scales = format.block_scales(nullptr, 0);
    if (random.chance(3)) {
      scales.block_rows = random.one_of<std::int64_t>({1, 2, 3, 16, 33, 128});
      scales.block_columns = random.one_of<std::int64_t>({1, 7, 16, 32, 64, 128, 1000});
    }
    scales.first_row = random.number(0, scales.block_rows - 1);
    scales.first_column = random.number(0, scales.block_columns - 1);
    const std::int64_t block_rows = (scales.first_row + rows) / scales.block_rows + 1;
    const std::int64_t block_columns = (scales.first_column + columns) / scales.block_columns + 1;
    scales.row_stride = block_columns + (random.chance(2) ? 0 : random.number(1, 40));
    memory = random.bytes(block_rows * scales.row_stride * bytes_of(dtype));
    if (slow::is_e8m0(dtype) && !random.chance(3)) {
      for (std::uint8_t& scale : memory) scale = static_cast<std::uint8_t>(100 + scale % 32);
    }
    scales.data = memory.data();
  }
};

/// Memory between two pages that cannot be touched.
class BetweenGuards {
 public:
  explicit BetweenGuards(std::size_t size) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    inner_ = (size + page_ - 1) / page_ * page_;
    void* address =
        mmap(nullptr, inner_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
    outer_ = static_cast<std::uint8_t*>(address);
    mprotect(outer_, page_, PROT_NONE);
    mprotect(outer_ + page_ + inner_, page_, PROT_NONE);
  }
  BetweenGuards(const BetweenGuards&) = delete;
  BetweenGuards& operator=(const BetweenGuards&) = delete;
  ~BetweenGuards() { munmap(outer_, inner_ + 2 * page_); }

  std::uint8_t* begin() { return outer_ + page_; }
  std::uint8_t* end() { return begin() + inner_; }

 private:
  std::size_t page_;
  std::size_t inner_;
  std::uint8_t* outer_;
};

inline std::string description(const SourceTile& source, const DestinationTile& destination) {
  return std::to_string(source.rows) + " x " + std::to_string(source.columns) + " " +
         std::string(name_of(source.dtype)) + " (row stride " + std::to_string(source.row_stride) + ") to " +
         std::string(name_of(destination.dtype)) + " (strides " + std::to_string(destination.row_stride) +
         ", " + std::to_string(destination.column_stride) + ")";
}

/// Each test of a suite derived from this runs with every instruction set of this machine, "scalar" included.
class EveryInstructionSet : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { use_instruction_set(GetParam()); }
  void TearDown() override { use_instruction_set(""); }
};

inline std::string name_of_parameter(const testing::TestParamInfo<std::string>& info) { return info.param; }

}  // namespace shardwright
