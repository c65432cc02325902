#include "storage/load.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "planner/models/models.h"
#include "storage/read_catalog.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// A checkpoint on disk and, for the reference, in memory: the bytes of each whole tensor by name.
struct Checkpoint {
  TemporaryDirectory directory;
  std::map<std::string, Stored> tensors;
  std::map<std::string, Bytes> bytes;
  Catalog catalog;

  Checkpoint(Random& random, const std::vector<Stored>& stored) {
    for (const Stored& tensor : stored) {
      tensors.emplace(tensor.name, tensor);
      Bytes& data = bytes[tensor.name];
      data.resize(static_cast<std::size_t>(volume(tensor.shape) * bytes_of(tensor.dtype)));
      for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(random.between(0, 255));
    }
    const Catalog layout = catalog_of(random, stored);
    for (std::uint32_t file = 0; file < layout.files.size(); ++file) write(layout, file);
    catalog = read_catalog(directory.path);
  }

 private:
  /// A safetensors file, its chunks marked as torch's HuggingFaceStorageWriter(save_distributed=True) marks
  /// them.
  void write(const Catalog& layout, std::uint32_t file) {
    std::string header, offsets, data(layout.files[file].size, '\0');
    const auto list = [](const Shape& shape) {
      std::string text = to_string(shape);
      std::erase(text, ' ');
      return text;
    };
    for (const SourceTensor& tensor : layout.tensors) {
      if (tensor.file != file) continue;
      header += ",\"" + tensor.name + "\":{\"dtype\":\"" + std::string(name_of(tensor.dtype)) +
                "\",\"shape\":" + list(tensor.shape) + ",\"data_offsets\":[" + std::to_string(tensor.begin) +
                "," + std::to_string(tensor.end) + "]}";
      offsets += (offsets.empty() ? "" : ",") + std::string("\\\"") + tensor.name +
                 "\\\":{\\\"saved_offsets\\\":" + list(tensor.offset) + "}";
      const auto element = static_cast<std::size_t>(bytes_of(tensor.dtype));
      char* to = data.data() + tensor.begin;
      for_each_index(tensor.shape, [&](const Shape& index) {
        const std::size_t from = flat(plus(index, tensor.offset), tensors.at(tensor.name).shape);
        std::memcpy(to, bytes[tensor.name].data() + from * element, element);
        to += element;
      });
    }
    if (header.empty()) return;
    header = "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{" + offsets + "}\"}" + header + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    write_file(directory / layout.files[file].name, little_endian(header.size()) + header + data);
  }
};

// The plain reference for numbers: doubles, which hold every value of the formats here and every product
// exactly.

struct Format {
  int exponent_bits;
  int mantissa_bits;
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::F8_E4M3:
      return {4, 3};
    case DType::F16:
      return {5, 10};
    case DType::BF16:
      return {8, 7};
    default:
      return {8, 23};  // F32
  }
}

double value_of(const std::uint8_t* bytes, DType dtype) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, bytes, static_cast<std::size_t>(bytes_of(dtype)));
  const Format format = format_of(dtype);
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int top = (1 << format.exponent_bits) - 1;
  const std::uint32_t mantissa = bits & ((1U << format.mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> format.mantissa_bits) & top;
  const double sign = (bits >> (format.mantissa_bits + format.exponent_bits)) != 0 ? -1.0 : 1.0;
  if (dtype == DType::F8_E4M3 ? (bits & 0x7F) == 0x7F : exponent == top && mantissa != 0)
    return std::numeric_limits<double>::quiet_NaN();
  if (dtype != DType::F8_E4M3 && exponent == top) return sign * std::numeric_limits<double>::infinity();
  const double fraction = std::ldexp(mantissa, -format.mantissa_bits) + (exponent > 0 ? 1 : 0);
  return sign * std::ldexp(fraction, std::max(exponent, 1) - bias);
}

double rounded(double value, DType dtype) {
  if (value == 0 || !std::isfinite(value)) return value;
  const Format format = format_of(dtype);
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const double last = std::ldexp(1.0, std::max(std::ilogb(value), 1 - bias) - format.mantissa_bits);
  const double nearest = std::nearbyint(value / last) * last;  // to even, the default
  if (std::abs(nearest) >= std::ldexp(1.0, bias + 1)) return std::copysign(HUGE_VAL, value);
  return nearest;
}

/// True if the destination's bytes are what the definition gives for that HF element.
bool is_decoded(const Checkpoint& checkpoint, const HfElement& hf, const std::uint8_t* found, DType dtype) {
  const Stored& tensor = checkpoint.tensors.at(hf.name);
  const auto element = static_cast<std::size_t>(bytes_of(tensor.dtype));
  const std::uint8_t* source = checkpoint.bytes.at(hf.name).data() + flat(hf.index, tensor.shape) * element;
  if (tensor.dtype == dtype) return std::memcmp(source, found, element) == 0;
  double value = value_of(source, tensor.dtype);
  if (const auto scales = checkpoint.tensors.find(hf.name + "_scale_inv");
      scales != checkpoint.tensors.end()) {
    const std::uint8_t scale =
        checkpoint.bytes.at(scales->first)[flat({hf.index[0], hf.index[1] / 32}, scales->second.shape)];
    value = scale == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(value, scale - 127);
  }
  const double expected = rounded(value, dtype);
  const double actual = value_of(found, dtype);
  if (std::isnan(expected) || std::isnan(actual)) return std::isnan(expected) && std::isnan(actual);
  return expected == actual && std::signbit(expected) == std::signbit(actual);
}

/// Memory for a local tensor, its dimensions in any order, mirrored, with gaps.
struct Memory {
  Bytes bytes;

  static constexpr std::uint8_t untouched = 0xA5;

  void give(Random& random, TensorSpec& spec) {
    std::vector<std::size_t> order(spec.local_shape.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const bool plain = random.once_in(3);
    if (!plain) random.shuffle(order);
    if (plain) std::reverse(order.begin(), order.end());
    std::int64_t stride = plain || random.once_in(2) ? 1 : 2;
    std::int64_t first = 0;
    for (const std::size_t d : order) {  // innermost first
      const bool mirrored = !plain && random.once_in(4);
      const std::int64_t size = std::max<std::int64_t>(1, spec.local_shape[d]);
      spec.local_strides[d] = mirrored ? -stride : stride;
      if (mirrored) first += (size - 1) * stride;
      stride *= size + (plain ? 0 : random.between(0, 2));
    }
    bytes.assign(static_cast<std::size_t>((stride + 4) * bytes_of(spec.dtype)), untouched);
    spec.data = bytes.data() + first * bytes_of(spec.dtype);
  }
};

std::uint8_t* address(const TensorSpec& spec, const Shape& at) {
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < at.size(); ++d) offset += at[d] * spec.local_strides[d];
  return static_cast<std::uint8_t*>(spec.data) + offset * bytes_of(spec.dtype);
}

TEST(load, every_element_is_what_plain_decoding_gives_and_nothing_else_is_touched) {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const RandomModel model = random_model(random);
    const Checkpoint checkpoint(random, model.stored);
    std::vector<TensorSpec> specs;
    std::vector<IndexLists> lists;
    std::vector<Memory> memory(model.natives.size());
    for (std::size_t n = 0; n < model.natives.size(); ++n) {
      const Native& native = model.natives[n];
      const Mesh mesh = random_mesh(random, std::ssize(native.shape));
      Shape coordinate;
      for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
      specs.push_back(
          sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape, coordinate, mesh.placements));
      lists.push_back(index_lists(native.shape, mesh, coordinate));
      memory[n].give(random, specs.back());
    }
    const LoadPlan plan =
        plan_load(specs, checkpoint.catalog, weight_map_for(checkpoint.catalog, "minimax_m3"));
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 4));
    options.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 4096, 9000, 20000, 100000}));
    const LoadReport report = load(plan, checkpoint.catalog, specs, options);

    for (std::size_t n = 0; n < specs.size(); ++n) {
      std::set<const std::uint8_t*> written;
      for_each_index(specs[n].local_shape, [&](const Shape& at) {
        const HfElement hf = hf_element(model.natives[n], global_index(lists[n], at));
        const std::uint8_t* found = address(specs[n], at);
        ASSERT_TRUE(is_decoded(checkpoint, hf, found, specs[n].dtype))
            << "round " << round << ": " << specs[n].fqn << to_string(at) << " from " << hf.name
            << to_string(hf.index);
        for (int byte = 0; byte < bytes_of(specs[n].dtype); ++byte) written.insert(found + byte);
      });
      for (const std::uint8_t& byte : memory[n].bytes)
        ASSERT_TRUE(byte == Memory::untouched || written.contains(&byte)) << specs[n].fqn;
    }
    std::set<std::uint32_t> files;
    for (const Transfer& transfer : plan.transfers) {
      files.insert(checkpoint.catalog.tensors[transfer.source].file);
      if (transfer.scales >= 0)
        files.insert(checkpoint.catalog.tensors[static_cast<std::size_t>(transfer.scales)].file);
    }
    EXPECT_EQ(report.files, std::ssize(files));
    EXPECT_GE(report.bytes_read, report.bytes_needed);
    EXPECT_EQ(report.bytes_needed, plan.bytes_needed);
    EXPECT_EQ(report.bytes_written, plan.bytes_written);
    EXPECT_EQ(report.tensors, plan.tensors);
    EXPECT_LE(report.threads, options.threads);
    EXPECT_TRUE(options.staging_bytes == 0 || report.peak_staging_bytes <= options.staging_bytes);
  }
}

/// One FP8 matrix with scales, as lm_head, in a file of its own.
struct OneMatrix {
  Random random{7};
  Native native;
  Checkpoint checkpoint;
  std::vector<TensorSpec> specs;
  Memory memory;
  LoadPlan plan;

  explicit OneMatrix(const Shape& shape, const Mesh& mesh = {}, DType dtype = DType::BF16)
      : native{"lm_head.weight", dtype, shape},
        checkpoint(random, {{"language_model.lm_head.weight", DType::F8_E4M3, shape, {whole(shape)}},
                            {"language_model.lm_head.weight_scale_inv",
                             DType::U8,
                             {shape[0], (shape[1] + 31) / 32},
                             {whole({shape[0], (shape[1] + 31) / 32})}}}) {
    specs.push_back(
        sharded_tensor(native.fqn, dtype, shape, mesh.shape, Shape(mesh.shape.size(), 0), mesh.placements));
    memory.bytes.assign(static_cast<std::size_t>(volume(specs[0].local_shape) * bytes_of(dtype)),
                        Memory::untouched);
    specs[0].data = memory.bytes.data();
    plan = plan_load(specs, checkpoint.catalog, weight_map_for(checkpoint.catalog, "minimax_m3"));
  }
  std::filesystem::path weights() const {
    return checkpoint.catalog.path_of(checkpoint.catalog.find("language_model.lm_head.weight")[0]);
  }
  LoadReport run(const LoadOptions& options = {}) const {
    return load(plan, checkpoint.catalog, specs, options);
  }
};

TEST(load, rows_longer_than_the_staging_are_read_in_parts) {
  OneMatrix job({3, 9001});
  std::swap(job.specs[0].local_strides[0], job.specs[0].local_strides[1]);
  job.specs[0].local_strides = {1, 3};
  for (const std::size_t staging : {4096, 5000, 12289}) {
    std::fill(job.memory.bytes.begin(), job.memory.bytes.end(), Memory::untouched);
    LoadOptions options;
    options.staging_bytes = staging;
    EXPECT_LE(job.run(options).peak_staging_bytes, staging);
    for_each_index(job.native.shape, [&](const Shape& at) {
      ASSERT_TRUE(
          is_decoded(job.checkpoint, hf_element(job.native, at), address(job.specs[0], at), DType::BF16))
          << to_string(at);
    });
  }
}

TEST(load, whole_rows_are_read_exactly) {
  for (const std::size_t staging : {0, 4096, 40000}) {
    const OneMatrix job({301, 200}, {{4}, {{Placement::Kind::shard, 0, 1}}});
    LoadOptions options;
    options.staging_bytes = staging;
    const LoadReport report = job.run(options);
    EXPECT_EQ(report.bytes_needed, 76U * 200 + 76 * 7);
    EXPECT_EQ(report.bytes_read, report.bytes_needed);
  }
}

TEST(load, staging_stays_within_what_the_caller_gives_for_any_number_of_threads) {
  const OneMatrix job({500, 400});
  for (const int threads : {1, 2, 3, 4}) {
    for (const std::size_t staging : {4096, 8191, 8192, 30000, 1 << 20}) {
      LoadOptions options;
      options.threads = threads;
      options.staging_bytes = staging;
      const LoadReport report = job.run(options);
      EXPECT_LE(report.peak_staging_bytes, staging);
      EXPECT_GT(report.peak_staging_bytes, 0U);
      EXPECT_LE(report.threads, threads);
      EXPECT_GE(report.threads, 1);
    }
  }
  LoadOptions options;
  options.staging_bytes = 4095;
  expect_error(ErrorKind::argument, {"staging_bytes", "4095", "4096"}, [&] { job.run(options); });
}

TEST(load, a_file_cut_short_after_planning_is_an_error_with_file_and_offset) {
  for (const int threads : {1, 4}) {
    const OneMatrix job({600, 1000});
    const std::uint64_t size = std::filesystem::file_size(job.weights()) - 12345;
    std::filesystem::resize_file(job.weights(), size);
    LoadOptions options;
    options.threads = threads;
    options.staging_bytes = 40000;
    expect_error(ErrorKind::io,
                 {job.weights().string(), "language_model.lm_head.weight",
                  threads == 1 ? std::to_string(size) : "offset", std::to_string(size + 12345), "cut short"},
                 [&] { job.run(options); });
  }
}

TEST(load, a_file_cut_to_nothing_is_an_error) {
  const OneMatrix job({60, 100});
  std::filesystem::resize_file(job.weights(), 0);
  expect_error(ErrorKind::io, {job.weights().string(), "offset"}, [&] { job.run(); });
}

TEST(load, a_file_that_is_gone_or_no_longer_a_file_is_an_error_and_no_hang) {
  const OneMatrix job({60, 100});
  std::filesystem::remove(job.weights());
  try {
    job.run();
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::io);
    EXPECT_EQ(error.system_error, ENOENT);
    EXPECT_NE(std::string(error.what()).find(job.weights().string()), std::string::npos);
  }
  std::filesystem::create_directory(job.weights());
  expect_error(ErrorKind::io, {job.weights().string()}, [&] { job.run(); });
  std::filesystem::remove(job.weights());
  ASSERT_EQ(mkfifo(job.weights().c_str(), 0600), 0);
  expect_error(ErrorKind::io, {job.weights().string()}, [&] { job.run(); });
}

TEST(load, progress_grows_and_ends_with_all_bytes) {
  const OneMatrix job({500, 400});
  std::vector<std::uint64_t> seen;
  std::uint64_t total = 0;
  LoadOptions options;
  options.threads = 2;
  options.staging_bytes = 8192;
  options.progress = [&](std::uint64_t done, std::uint64_t all) {
    seen.push_back(done);
    total = all;
  };
  const LoadReport report = job.run(options);
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), report.bytes_read);
  EXPECT_EQ(total, report.bytes_read);
}

TEST(load, progress_that_throws_stops_the_load) {
  const OneMatrix job({500, 400});
  LoadOptions options;
  options.threads = 3;
  options.staging_bytes = 12288;
  options.progress = [](std::uint64_t, std::uint64_t) { throw std::runtime_error("enough"); };
  try {
    job.run(options);
    ADD_FAILURE() << "expected what progress threw";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "enough");
  }
}

TEST(load, a_plan_for_memory_that_is_not_there_is_refused) {
  OneMatrix job({6, 10});
  job.specs[0].data = nullptr;
  expect_error(ErrorKind::argument, {"lm_head.weight"}, [&] { job.run(); });
}

TEST(load, an_empty_plan_does_nothing) {
  const LoadReport report = load({}, {}, {});
  EXPECT_EQ(report.bytes_read, 0U);
  EXPECT_EQ(report.peak_staging_bytes, 0U);
  EXPECT_EQ(report.files, 0);
}

}  // namespace
}  // namespace shardwright
