// The kernels by themselves, in encoded bytes per second for each instruction set, beside memcpy of the same
// output.
//
//   bench/kernels --benchmark_filter='mxfp8/transposed/BF16'
//
// `of_memcpy` is how fast decoded bytes are written, over how fast memcpy writes them by as many threads in
// the same process.
//
// Encoding goes the other way, from values that lie in memory into the cache: bytes per second are those of
// the values, beside memcpy of the same.
//
// Each thread decodes tiles that lie in its second-level cache, as the engine's staging does, into its own
// share of a destination far larger than any cache: the cost of memory on the way out is in the figure. Bytes
// per second are those of the input, scales included, or of the output where the name says so.

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "kernels/decode.h"
#include "kernels/encode.h"

namespace {

using shardwright::BlockScales;
using shardwright::DType;
using shardwright::Product;
using shardwright::SourceTile;

constexpr std::int64_t tile_rows = 256;
constexpr std::int64_t tile_columns = 2048;
constexpr std::int64_t destination_bytes = std::int64_t{1} << 30;
constexpr int most_threads = 2;

/// Touched memory that all benchmarks write to, in turn, so that no page fault is measured. With huge pages,
/// as numpy's and torch's large allocations have them where the system allows it.
std::byte* destination() {
  static std::byte* const memory = [] {
    const auto size = static_cast<std::size_t>(destination_bytes);
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(address, size, MADV_HUGEPAGE);
    std::memset(address, 1, size);
    return static_cast<std::byte*>(address);
  }();
  return memory;
}

/// Where the tiles of one thread go, one after the other.
struct Places {
  std::byte* begin;
  std::int64_t bytes_each;
  std::int64_t count;
  std::int64_t at = 0;

  Places(const benchmark::State& state, std::int64_t bytes)
      : begin(destination() + destination_bytes / state.threads() * state.thread_index()),
        bytes_each(bytes),
        count(destination_bytes / state.threads() / bytes) {}

  std::byte* next() {
    at = (at + 1) % count;
    return begin + at * bytes_each;
  }
};

enum class Layout { straight, transposed };

struct Encoding {
  const char* name;
  DType element;
  DType scale;
  Product product;
  std::int64_t block_rows;
  std::int64_t block_columns;
};

constexpr Encoding encodings[] = {
    {"mxfp8", DType::F8_E4M3, DType::F8_E8M0, Product::exact_once, 1, 32},
    {"block_fp8", DType::F8_E4M3, DType::F32, Product::to_f32_first, 128, 128},
    {"block_fp8_e8m0", DType::F8_E4M3, DType::F8_E8M0, Product::exact_once, 128, 128},
    {"block_fp8_e5m2", DType::F8_E5M2, DType::F32, Product::to_f32_first, 128, 128},
    {"channel_fp8", DType::F8_E4M3, DType::BF16, Product::to_f32_first, 1, tile_columns},
    {"tensor_fp8", DType::F8_E4M3, DType::F32, Product::to_f32_first, tile_rows, tile_columns},
    {"mxfp4", DType::F4, DType::F8_E8M0, Product::exact_once, 1, 32},
    {"nvfp4_modelopt", DType::F4, DType::F8_E4M3, Product::modelopt_nvfp4, 1, 16},
    {"nvfp4_compressed_tensors", DType::F4, DType::F8_E4M3, Product::compressed_tensors_nvfp4, 1, 16},
    {"int4_32", DType::I4, DType::BF16, Product::exact_once, 1, 32},
    {"int4_128", DType::I4, DType::BF16, Product::exact_once, 1, 128},
    {"bf16_times_bf16", DType::BF16, DType::BF16, Product::exact_once, tile_rows, tile_columns},
};

struct Tile {
  std::vector<std::uint8_t> elements;
  std::vector<std::uint8_t> scales;
};

/// Any elements, and scales of all the magnitudes that occur.
Tile random_tile(const Encoding& encoding) {
  const std::int64_t scale_count = tile_rows / encoding.block_rows * (tile_columns / encoding.block_columns);
  const int scale_bytes = shardwright::bytes_of(encoding.scale);
  Tile tile{std::vector<std::uint8_t>(tile_rows * tile_columns * shardwright::bits_of(encoding.element) / 8),
            std::vector<std::uint8_t>(static_cast<std::size_t>(scale_count * scale_bytes))};
  std::uint64_t state = 1;
  const auto next = [&state] { return (state = state * 6364136223846793005U + 1442695040888963407U) >> 40; };
  for (std::uint8_t& element : tile.elements) element = static_cast<std::uint8_t>(next());
  for (std::int64_t i = 0; i < scale_count; ++i) {
    const auto wide = std::bit_cast<std::uint32_t>(static_cast<float>(next() + 1) * 0x1p-30F);
    std::uint32_t bits = scale_bytes == 4 ? wide : wide >> 16;
    if (encoding.scale == DType::F8_E8M0) bits = static_cast<std::uint32_t>(100 + next() % 40);
    if (encoding.scale == DType::F8_E4M3) bits = static_cast<std::uint32_t>(1 + next() % 0x7E);
    std::memcpy(tile.scales.data() + i * scale_bytes, &bits, static_cast<std::size_t>(scale_bytes));
  }
  return tile;
}

/// Bytes per second that memcpy writes to the destination, by so many threads, from their second-level
/// caches.
double memcpy_speed(int threads) {
  static std::map<int, double> speeds;
  if (const auto known = speeds.find(threads); known != speeds.end()) return known->second;
  constexpr std::int64_t bytes = tile_rows * tile_columns * 2;
  const auto start = std::chrono::steady_clock::now();
  constexpr int rounds = 3;
  std::vector<std::thread> writers;
  for (int thread = 0; thread < threads; ++thread) {
    writers.emplace_back([=] {
      const std::vector<std::byte> source(static_cast<std::size_t>(bytes), std::byte{1});
      const std::int64_t share = destination_bytes / threads;
      for (int round = 0; round < rounds; ++round) {
        for (std::int64_t at = 0; at + bytes <= share; at += bytes) {
          std::memcpy(destination() + thread * share + at, source.data(), source.size());
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return speeds[threads] = rounds * static_cast<double>(destination_bytes) / seconds.count();
}

/// Transposed tiles go where the engine puts w1 of an expert: side by side into [tile_columns, width] with a
/// width of several tiles, so that the rows of the destination lie several pages apart.
void decode_tiles(benchmark::State& state, const std::string& instruction_set, const Encoding& encoding,
                  Layout layout, DType dtype, std::int64_t width_in_tiles) {
  double speed_of_memcpy = 0;
  if (state.thread_index() == 0) {
    shardwright::use_instruction_set(instruction_set);
    destination();
    speed_of_memcpy = memcpy_speed(state.threads());
  }
  const Tile tile = random_tile(encoding);
  const SourceTile source{tile.elements.data(), encoding.element, tile_rows, tile_columns, tile_columns};
  const bool is_nvfp4 = encoding.scale == DType::F8_E4M3;
  const BlockScales scales{tile.scales.data(),
                           tile_columns / encoding.block_columns,
                           encoding.block_rows,
                           encoding.block_columns,
                           0,
                           0,
                           encoding.scale,
                           encoding.product,
                           is_nvfp4 ? 0.37F : 1.0F};
  const std::int64_t size = shardwright::bytes_of(dtype);
  const std::int64_t tile_bytes = tile_rows * tile_columns * size;
  Places places(state, tile_bytes * width_in_tiles);
  for (std::int64_t in_row = 0; auto _ : state) {
    static_cast<void>(_);
    std::byte* place = places.begin + places.at * places.bytes_each;
    if (layout == Layout::straight) {
      place += in_row * tile_bytes;
      shardwright::decode(source, scales, {place, dtype, tile_columns, 1});
    } else {
      place += in_row * tile_rows * size;
      shardwright::decode(source, scales, {place, dtype, 1, tile_rows * width_in_tiles});
    }
    if (++in_row == width_in_tiles) {
      in_row = 0;
      places.next();
    }
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<std::int64_t>(tile.elements.size() + tile.scales.size()));
  if (state.thread_index() == 0) {
    // A rate is divided by the seconds that the benchmark took.
    const double written = static_cast<double>(state.iterations() * tile_bytes) * state.threads();
    state.counters["of_memcpy"] = {written / speed_of_memcpy, benchmark::Counter::kIsRate};
  }
}

/// What the output of one tile costs if it is only copied. Bytes per second of the output.
void memcpy_output(benchmark::State& state) {
  const std::int64_t bytes = tile_rows * tile_columns * 2;
  const std::vector<std::byte> source(static_cast<std::size_t>(bytes), std::byte{1});
  Places places(state, bytes);
  for (auto _ : state) {
    static_cast<void>(_);
    std::memcpy(places.next(), source.data(), source.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}
BENCHMARK(memcpy_output)->Name("memcpy/output_bytes")->ThreadRange(1, most_threads)->UseRealTime();

/// BF16 to BF16 or F32, bytes per second of the source.
void place_tiles(benchmark::State& state, const std::string& instruction_set, Layout layout, DType dtype) {
  if (state.thread_index() == 0) shardwright::use_instruction_set(instruction_set);
  const std::vector<std::uint16_t> elements(tile_rows * tile_columns / 2, 0x3F80);
  const SourceTile source{elements.data(), DType::BF16, tile_rows / 2, tile_columns, tile_columns};
  Places places(state, tile_rows / 2 * tile_columns * shardwright::bytes_of(dtype));
  for (auto _ : state) {
    static_cast<void>(_);
    if (layout == Layout::straight) {
      shardwright::place(source, {places.next(), dtype, tile_columns, 1});
    } else {
      shardwright::place(source, {places.next(), dtype, 1, tile_rows / 2});
    }
  }
  state.SetBytesProcessed(state.iterations() * tile_rows / 2 * tile_columns * 2);
}

/// Memory full of random BF16 values of weights' magnitudes, the bits of each at least half used.
const std::byte* values_in_memory() {
  static const std::byte* const memory = [] {
    auto* values = reinterpret_cast<std::uint16_t*>(destination());
    std::uint64_t state = 1;
    for (std::int64_t i = 0; i < destination_bytes / 2; ++i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      values[i] = static_cast<std::uint16_t>((state >> 33 & 0x807F) + 0x3900 + (state >> 48 & 0x0480));
    }
    return destination();
  }();
  return memory;
}

/// BF16 values to MXFP8; transposed ones as w1 of an expert lies in its native tensor. Bytes per second of
/// the values.
void encode_tiles(benchmark::State& state, const std::string& instruction_set, Layout layout) {
  if (state.thread_index() == 0) {
    shardwright::use_instruction_set(instruction_set);
    values_in_memory();
  }
  std::vector<std::uint8_t> elements(tile_rows * tile_columns);
  std::vector<std::uint8_t> scales(tile_rows * tile_columns / 32);
  const std::int64_t bytes = tile_rows * tile_columns * 2;
  Places places(state, bytes);
  for (auto _ : state) {
    static_cast<void>(_);
    const bool straight = layout == Layout::straight;
    shardwright::encode({places.next(), DType::BF16, tile_rows, tile_columns, straight ? tile_columns : 1,
                         straight ? 1 : tile_rows},
                        0, {}, {elements.data(), tile_columns, scales.data(), tile_columns / 32});
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

/// What reading the values of one tile costs if they are only copied.
void memcpy_input(benchmark::State& state) {
  if (state.thread_index() == 0) values_in_memory();
  const std::int64_t bytes = tile_rows * tile_columns * 2;
  std::vector<std::byte> copy(static_cast<std::size_t>(bytes));
  Places places(state, bytes);
  for (auto _ : state) {
    static_cast<void>(_);
    std::memcpy(copy.data(), places.next(), copy.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}
BENCHMARK(memcpy_input)->Name("memcpy/input_bytes")->ThreadRange(1, most_threads)->UseRealTime();

const char* name_of(Layout layout) { return layout == Layout::straight ? "straight" : "transposed"; }

const bool registered = [] {
  for (const std::string& set : shardwright::instruction_sets()) {
    for (const Layout layout : {Layout::transposed, Layout::straight}) {
      for (const Encoding& encoding : encodings) {
        for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
          const std::int64_t width_in_tiles = layout == Layout::transposed ? 8 : 1;
          const std::string name = "decode/" + std::string(encoding.name) + "/" +
                                   std::string(name_of(layout)) + "/" +
                                   std::string(shardwright::name_of(dtype)) + "/" + set;
          benchmark::RegisterBenchmark(name.c_str(), decode_tiles, set, encoding, layout, dtype,
                                       width_in_tiles)
              ->ThreadRange(1, most_threads)
              ->UseRealTime();
        }
      }
      const std::string encoding = "encode/mxfp8/" + std::string(name_of(layout)) + "/BF16/" + set;
      benchmark::RegisterBenchmark(encoding.c_str(), encode_tiles, set, layout)
          ->ThreadRange(1, most_threads)
          ->UseRealTime();
      for (const DType dtype : {DType::BF16, DType::F32}) {
        const std::string name = "place_bf16/" + std::string(name_of(layout)) + "/" +
                                 std::string(shardwright::name_of(dtype)) + "/" + set;
        benchmark::RegisterBenchmark(name.c_str(), place_tiles, set, layout, dtype)
            ->ThreadRange(1, most_threads)
            ->UseRealTime();
      }
    }
  }
  return true;
}();

}  // namespace
