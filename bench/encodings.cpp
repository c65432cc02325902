// For each encoding what one core decodes and encodes, in GB/s of encoded bytes (codes and scales), beside
// what memory gives in the same run:
//
//   bench/encodings [rounds]
//
// Decoding goes from the second-level cache, where the engine's staging lies, into BF16 weights in memory;
// encoding goes from BF16 weights in memory into that cache. `of memory` is the speed of the weights over
// that of memcpy between the same two places. `transposed` weights lie as an expert's do in a grouped tensor.
// Seconds are those that the core was given, so that others on the machine cost less; what is printed is the
// median of the rounds, each of which measures all ways in turn.

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "kernels/encode.h"

namespace {

using shardwright::BlockGrid;
using shardwright::BlockScales;
using shardwright::DType;
using shardwright::EncodingRule;
using shardwright::Product;

constexpr std::int64_t rows = 256;
constexpr std::int64_t columns = 2048;
constexpr std::int64_t weight_bytes = rows * columns * 2;
constexpr std::int64_t memory_bytes = std::int64_t{512} << 20;
constexpr int tiles_at_once = 64;

struct Encoding {
  const char* name;
  std::int64_t block_rows;
  std::int64_t block_columns;
  DType element;
  DType scale;
  Product product;
  std::optional<EncodingRule> rule;
};

constexpr Encoding encodings[] = {
    {"mxfp8", 1, 32, DType::F8_E4M3, DType::F8_E8M0, Product::exact_once, EncodingRule::mxfp8},
    {"block_fp8", 128, 128, DType::F8_E4M3, DType::F32, Product::to_f32_first, EncodingRule::block_fp8},
    {"block_fp8_e8m0", 128, 128, DType::F8_E4M3, DType::F8_E8M0, Product::exact_once, {}},
    {"channel_fp8", 1, columns, DType::F8_E4M3, DType::BF16, Product::to_f32_first, {}},
    {"tensor_fp8", rows, columns, DType::F8_E4M3, DType::F32, Product::to_f32_first, {}},
    {"mxfp4, ModelOpt's rule", 1, 32, DType::F4, DType::F8_E8M0, Product::exact_once,
     EncodingRule::mxfp4_modelopt},
    {"mxfp4, OCP's rule", 1, 32, DType::F4, DType::F8_E8M0, Product::exact_once, EncodingRule::mxfp4_ocp},
    {"mxfp4, gpt-oss's rule", 1, 32, DType::F4, DType::F8_E8M0, Product::exact_once,
     EncodingRule::mxfp4_gpt_oss},
    {"nvfp4, ModelOpt's", 1, 16, DType::F4, DType::F8_E4M3, Product::modelopt_nvfp4,
     EncodingRule::nvfp4_modelopt},
    {"nvfp4, compressed-tensors'", 1, 16, DType::F4, DType::F8_E4M3, Product::compressed_tensors_nvfp4,
     EncodingRule::nvfp4_compressed_tensors},
    {"int4, groups of 32", 1, 32, DType::I4, DType::BF16, Product::exact_once,
     EncodingRule::int4_compressed_tensors},
    {"int4, groups of 128", 1, 128, DType::I4, DType::BF16, Product::exact_once, {}},
};

/// Touched memory far larger than any cache, with huge pages where the system has them; weights of all
/// magnitudes that trained ones have.
std::byte* weights_in_memory() {
  static std::byte* const memory = [] {
    const auto size = static_cast<std::size_t>(memory_bytes);
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) std::abort();
    madvise(address, size, MADV_HUGEPAGE);
    auto* weights = static_cast<std::uint16_t*>(address);
    std::uint64_t state = 1;
    for (std::int64_t i = 0; i < memory_bytes / 2; ++i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      weights[i] = static_cast<std::uint16_t>((state >> 33 & 0x807F) + 0x3900 + (state >> 48 & 0x0480));
    }
    return static_cast<std::byte*>(address);
  }();
  return memory;
}

/// The next place for a tile of weights.
std::byte* next_place() {
  static std::int64_t at = 0;
  at = (at + 1) % (memory_bytes / weight_bytes);
  return weights_in_memory() + at * weight_bytes;
}

double core_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// One thing that is measured: work on one tile, and the bytes of which GB/s are told.
struct Way {
  std::function<void()> work;
  std::int64_t bytes;
  std::vector<double> seconds = {};

  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double speed() const { return static_cast<double>(bytes) * tiles_at_once / median() * 1e-9; }
  double speed_of_weights() const { return weight_bytes * tiles_at_once / median() * 1e-9; }
};

struct Tile {
  std::vector<std::uint8_t> codes;
  std::vector<std::uint8_t> scales;
  std::int64_t blocks_across;
  std::int64_t bytes() const { return static_cast<std::int64_t>(codes.size() + scales.size()); }
};

/// Weights from memory, encoded; with any scales where no rule finds some.
Tile encoded_tile(const Encoding& encoding) {
  const std::int64_t across = columns / encoding.block_columns;
  const std::int64_t blocks = rows / encoding.block_rows * across;
  const std::int64_t scale_bytes = shardwright::bytes_of(encoding.scale);
  Tile tile{std::vector<std::uint8_t>(rows * columns * shardwright::bits_of(encoding.element) / 8),
            std::vector<std::uint8_t>(static_cast<std::size_t>(blocks * scale_bytes)), across};
  std::uint64_t state = 1;
  const auto next = [&state] { return (state = state * 6364136223846793005U + 1442695040888963407U) >> 40; };
  for (std::uint8_t& code : tile.codes) code = static_cast<std::uint8_t>(next());
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto wide = std::bit_cast<std::uint32_t>(static_cast<float>(next() + 1) * 0x1p-30F);
    std::uint32_t bits = scale_bytes == 4 ? wide : wide >> 16;
    if (encoding.scale == DType::F8_E8M0) bits = static_cast<std::uint32_t>(110 + next() % 20);
    if (encoding.scale == DType::F8_E4M3) bits = static_cast<std::uint32_t>(1 + next() % 0x7E);
    std::memcpy(tile.scales.data() + i * scale_bytes, &bits, static_cast<std::size_t>(scale_bytes));
  }
  return tile;
}

struct Measured {
  const Encoding* encoding;
  Way decode;
  Way decode_transposed;
  std::optional<Way> encode;
  std::optional<Way> encode_transposed;
  Way with_scales;
};

Measured ways_of(const Encoding& encoding, Tile& tile) {
  const float global = encoding.scale == DType::F8_E4M3 ? 0.37F : 1.0F;
  const BlockScales scales{tile.scales.data(),
                           tile.blocks_across,
                           encoding.block_rows,
                           encoding.block_columns,
                           0,
                           0,
                           encoding.scale,
                           encoding.product,
                           global};
  const auto decode = [&encoding, &tile, scales](bool is_transposed) {
    shardwright::decode({tile.codes.data(), encoding.element, rows, columns, columns}, scales,
                        {next_place(), DType::BF16, is_transposed ? 1 : columns, is_transposed ? rows : 1});
  };
  const auto weights = [](bool is_transposed) {
    return shardwright::ValueTile{
        next_place(), DType::BF16, rows, columns, is_transposed ? 1 : columns, is_transposed ? rows : 1};
  };
  const std::int64_t bytes = tile.bytes();
  Measured measured{&encoding,
                    {[decode] { decode(false); }, bytes},
                    {[decode] { decode(true); }, bytes},
                    {},
                    {},
                    {[&encoding, &tile, scales, weights] {
                       shardwright::encode_with_scales(encoding.element, weights(false), scales,
                                                       {tile.codes.data(), columns});
                     },
                     bytes}};
  if (!encoding.rule) return measured;
  const auto encode = [&encoding, &tile, weights, global](bool is_transposed) {
    const EncodingRule rule = *encoding.rule;
    const shardwright::ValueTile values = weights(is_transposed);
    if (rule == EncodingRule::mxfp8) {
      return shardwright::encode(values, 0, {},
                                 {tile.codes.data(), columns, tile.scales.data(), tile.blocks_across});
    }
    const BlockGrid grid{encoding.block_rows, encoding.block_columns};
    const std::int64_t blocks = rows / encoding.block_rows * tile.blocks_across;
    static std::vector<float> magnitudes(rows * columns / 16);
    static std::vector<float> factors(rows * columns / 16);
    shardwright::find_magnitudes(values, grid, magnitudes.data(), tile.blocks_across);
    shardwright::scales_of_magnitudes(rule, DType::BF16, magnitudes.data(), blocks, global,
                                      tile.scales.data(), factors.data());
    shardwright::encode_elements(rule, values, grid, factors.data(), tile.blocks_across,
                                 {tile.codes.data(), columns});
  };
  measured.encode = {[encode] { encode(false); }, bytes};
  measured.encode_transposed = {[encode] { encode(true); }, bytes};
  return measured;
}

void measure(Way& way) {
  way.work();
  const double begin = core_seconds();
  for (int tile = 0; tile < tiles_at_once; ++tile) way.work();
  way.seconds.push_back(core_seconds() - begin);
}

/// "12.34 (0.56)": GB/s of encoded bytes, and the speed of the weights over that of memcpy.
std::string cell(const std::optional<Way>& way, const Way& memory) {
  if (!way) return "-";
  char text[64];
  std::snprintf(text, sizeof text, "%.2f (%.2f)", way->speed(),
                way->speed_of_weights() / memory.speed_of_weights());
  return text;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 7;
  if (rounds < 1) {
    std::fprintf(stderr, "usage: encodings [rounds]; found \"%s\", expected a number from 1 on\n",
                 arguments[1]);
    return 2;
  }
  std::vector<std::byte> cached(static_cast<std::size_t>(weight_bytes));
  Way write{[&] { std::memcpy(next_place(), cached.data(), cached.size()); }, weight_bytes};
  Way read{[&] { std::memcpy(cached.data(), next_place(), cached.size()); }, weight_bytes};

  std::vector<Tile> tiles;
  tiles.reserve(std::size(encodings));
  std::vector<Measured> all;
  for (const Encoding& encoding : encodings) {
    tiles.push_back(encoded_tile(encoding));
    all.push_back(ways_of(encoding, tiles.back()));
  }
  for (int round = 0; round < rounds; ++round) {
    measure(read);
    // Encoding first: it leaves codes of trained weights, without NaNs, for all that follows.
    for (Measured& measured : all) {
      if (measured.encode) measure(*measured.encode);
      if (measured.encode_transposed) measure(*measured.encode_transposed);
      measure(measured.with_scales);
    }
    measure(write);
    for (Measured& measured : all) {
      measure(measured.decode);
      measure(measured.decode_transposed);
    }
  }
  std::printf(
      "One core, %s. memcpy of weights: %.2f GB/s into memory, %.2f GB/s out of it.\n"
      "GB/s of encoded bytes, and in brackets the speed of the weights over memcpy's:\n\n",
      shardwright::instruction_set().c_str(), write.speed(), read.speed());
  std::printf("%-28s %14s %14s %14s %14s %14s\n", "", "decode", "transposed", "encode", "transposed",
              "with scales");
  for (const Measured& measured : all) {
    std::printf("%-28s %14s %14s %14s %14s %14s\n", measured.encoding->name,
                cell(measured.decode, write).c_str(), cell(measured.decode_transposed, write).c_str(),
                cell(measured.encode, read).c_str(), cell(measured.encode_transposed, read).c_str(),
                cell(measured.with_scales, read).c_str());
  }
  return 0;
}
