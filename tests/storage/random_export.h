#pragma once

// A random state of all ranks of a job, and what the files of an export of it must hold, HF element by HF
// element.

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "planner/names/companions.h"
#include "storage/write/export.h"
#include "tests/kernels/slow_encoding.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/device_destinations.h"

namespace shardwright {

/// What one rank holds: a spec for each tensor, in memory of its own.
struct RankTensors {
  std::vector<TensorSpec> specs;
  std::vector<Memory> memory;
};

struct RandomExport {
  /// Which element of which HF tensor an element of native tensor number n is.
  using ElementOf = std::function<HfElement(std::size_t n, const Shape& at)>;

  ElementOf element_of;
  std::vector<Native> natives;
  std::vector<Bytes> values;             // of the whole native tensors, row-major
  std::vector<Stored> template_tensors;  // the template's tensors, weights and scales
  Catalog template_catalog;
  std::vector<RankTensors> ranks;
  ExportRequest request;

  RandomExport(Random& random, std::int64_t largest)
      : RandomExport(random, random_model(random, largest), nullptr,
                     [this](std::size_t n, const Shape& at) { return hf_element(natives[n], at); }) {}

  /// With these rules; null: M3's.
  RandomExport(Random& random, RandomModel model, const WeightMap* map, ElementOf element_of_native)
      : element_of(std::move(element_of_native)) {
    natives = model.natives;
    for (Stored& tensor : model.stored) {
      tensor.chunks = {whole(tensor.shape)};
      if (is_scale_name(tensor.name)) continue;
      const bool scaled = is_float8(tensor.dtype);
      if (scaled) tensor.dtype = DType::F8_E4M3;
      template_tensors.push_back(tensor);
      if (!scaled) continue;
      const Shape shape{tensor.shape[0], (tensor.shape[1] + 31) / 32};
      const DType dtype = random.one_of<DType>({DType::U8, DType::F8_E8M0});
      template_tensors.push_back({tensor.name + "_scale_inv", dtype, shape, {whole(shape)}});
    }
    template_catalog = catalog_of(random, template_tensors);
    for (const Native& native : natives) values.push_back(random_values(random, native));
    spread_over_ranks(random);
    request.template_catalog = &template_catalog;
    request.model = "minimax_m3";
    request.map = map;
    const bool any_scaled = std::any_of(template_tensors.begin(), template_tensors.end(),
                                        [](const Stored& one) { return is_float8(one.dtype); });
    if (any_scaled && !random.once_in(3)) request.quantize = quantization_named("mxfp8");
    request.max_file_bytes = random.one_of<std::uint64_t>({1, 3000, 1 << 30});
  }
  RandomExport(const RandomExport&) = delete;
  RandomExport& operator=(const RandomExport&) = delete;

  /// What the tensor of that name must be in the files, row-major.
  struct Expected {
    DType dtype;
    Shape shape;
    std::vector<std::uint64_t> bits;
  };
  std::map<std::string, Expected> expected() const {
    std::map<std::string, Expected> all;
    for (const auto& [name, plain] : hf_values()) {
      const auto stored = [&](const std::string& of) {
        return std::find_if(template_tensors.begin(), template_tensors.end(),
                            [&](const Stored& one) { return one.name == of; });
      };
      const auto scales = stored(name + "_scale_inv");
      if (scales == template_tensors.end() || request.quantize == nullptr) {
        const DType dtype = scales != template_tensors.end() ? DType::BF16 : stored(name)->dtype;
        Expected& result = all[name] = {dtype, plain.shape, {}};
        for (const std::uint64_t bits : plain.bits)
          result.bits.push_back(slow::converted(plain.dtype, dtype, bits));
        continue;
      }
      Expected& elements = all[name] = {DType::F8_E4M3, plain.shape, {}};
      Expected& found = all[scales->name] = {scales->dtype, scales->shape, {}};
      const auto columns = static_cast<std::size_t>(plain.shape[1]);
      for (std::size_t begin = 0; begin < plain.bits.size(); begin += columns) {
        for (std::size_t column = 0; column < columns; column += 32) {
          std::vector<long double> block;
          for (std::size_t i = column; i < std::min(column + 32, columns); ++i)
            block.push_back(slow::value_of(plain.dtype, plain.bits[begin + i]));
          const std::uint8_t scale = slow::scale_of(block);
          found.bits.push_back(scale);
          for (const long double value : block) elements.bits.push_back(slow::encoded(value, scale));
        }
      }
    }
    return all;
  }

 private:
  static Bytes random_values(Random& random, const Native& native) {
    const auto count = static_cast<std::size_t>(volume(native.shape));
    Bytes bytes(count * static_cast<std::size_t>(bytes_of(native.dtype)));
    const bool any_bits = native.dtype == DType::I64 || random.once_in(4);
    const auto around = static_cast<int>(random.between(-20, 10));
    for (std::size_t i = 0; i < count; ++i) {
      auto bits = static_cast<std::uint64_t>(random.between(0, std::int64_t{1} << 40));
      if (!any_bits) {
        const long double value = std::ldexp(static_cast<long double>(random.between(-(1 << 20), 1 << 20)),
                                             around - 20 - static_cast<int>(random.between(0, 12)));
        bits = slow::rounded(native.dtype, value);
      }
      slow::store(bytes.data(), static_cast<std::int64_t>(i), native.dtype, bits);
    }
    return bytes;
  }

  void spread_over_ranks(Random& random) {
    const Shape mesh_shape = random_mesh(random, 2).shape;
    std::vector<Shape> coordinates;
    for_each_index(mesh_shape, [&](const Shape& at) { coordinates.push_back(at); });
    ranks.resize(coordinates.size());
    for (std::size_t n = 0; n < natives.size(); ++n) {
      const std::string& fqn = natives[n].fqn;
      const DType dtype = natives[n].dtype;
      const Shape& shape = natives[n].shape;
      Mesh mesh = random_mesh(random, std::ssize(shape));
      mesh.shape = mesh_shape;
      mesh.placements.resize(mesh_shape.size());
      for (std::size_t r = 0; r < ranks.size(); ++r) {
        RankTensors& rank = ranks[r];
        rank.specs.push_back(sharded_tensor(fqn, dtype, shape, mesh.shape, coordinates[r], mesh.placements));
        TensorSpec& spec = rank.specs.back();
        rank.memory.emplace_back().give(random, spec);
        const IndexLists lists = index_lists(shape, mesh, coordinates[r]);
        for_each_index(spec.local_shape, [&](const Shape& at) {
          const std::size_t element = flat(global_index(lists, at), shape);
          slow::store(address(spec, at), 0, dtype,
                      slow::load(values[n].data(), static_cast<std::int64_t>(element), dtype));
        });
      }
    }
  }

  /// The HF tensors with the native bits.
  std::map<std::string, Expected> hf_values() const {
    std::map<std::string, Expected> all;
    for (const Stored& tensor : template_tensors) {
      if (is_scale_name(tensor.name)) continue;
      all[tensor.name] = {DType::BF16, tensor.shape,
                          std::vector<std::uint64_t>(static_cast<std::size_t>(volume(tensor.shape)))};
    }
    for (std::size_t n = 0; n < natives.size(); ++n) {
      std::int64_t element = 0;
      for_each_index(natives[n].shape, [&](const Shape& at) {
        const HfElement hf = element_of(n, at);
        Expected& tensor = all.at(hf.name);
        tensor.dtype = natives[n].dtype;
        tensor.bits[flat(hf.index, tensor.shape)] = slow::load(values[n].data(), element++, tensor.dtype);
      });
    }
    return all;
  }
};

/// The three steps of storage/write/export.h, the ranks one after the other. Returns the reports of the
/// ranks.
inline std::vector<ExportReport> run_on_all_ranks(const std::vector<std::vector<TensorSpec>>& specs,
                                                  const ExportRequest& request,
                                                  const std::filesystem::path& directory,
                                                  const ExportWriting& writing,
                                                  ExportLayout* layout = nullptr) {
  std::vector<std::string> holdings;
  std::vector<RankState> states;
  for (const std::vector<TensorSpec>& of_rank : specs) {
    states.push_back(state_of(of_rank, std::ssize(states)));
    holdings.push_back(describe_export(of_rank, states.back(), request, writing.devices));
  }
  const PlannedExport planned = plan_export(holdings, request, directory);
  std::filesystem::create_directories(directory);
  std::vector<ExportReport> reports;
  for (std::size_t rank = 0; rank < specs.size(); ++rank)
    reports.push_back(
        run_export(planned.shares[rank], specs[rank], states[rank], request, directory, writing));
  if (layout != nullptr) *layout = planned.layout;
  return reports;
}

inline bool is_same(DType dtype, std::uint64_t found, std::uint64_t expected) {
  if (found == expected || !is_wide_float(dtype)) return found == expected;
  return std::isnan(slow::value_of(dtype, found)) && std::isnan(slow::value_of(dtype, expected));
}

/// The files are headers and these tensors, nothing else.
inline void expect_files(const std::filesystem::path& directory, const ExportLayout& layout,
                         const std::map<std::string, RandomExport::Expected>& expected) {
  std::vector<std::string> files;
  for (std::size_t f = 0; f < layout.catalog.files.size(); ++f) {
    files.push_back(read_file(directory / layout.catalog.files[f].name));
    EXPECT_EQ(files.back().substr(0, layout.headers[f].size()), layout.headers[f]);
  }
  ASSERT_EQ(layout.catalog.tensors.size(), expected.size());
  std::vector<std::size_t> ends(files.size());
  for (const SourceTensor& tensor : layout.catalog.tensors) {
    ASSERT_TRUE(expected.contains(tensor.name)) << tensor.name;
    const auto& [dtype, shape, bits] = expected.at(tensor.name);
    ASSERT_EQ(name_of(tensor.dtype), name_of(dtype)) << tensor.name;
    ASSERT_EQ(tensor.shape, shape) << tensor.name;
    ends[tensor.file] = std::max<std::size_t>(ends[tensor.file], tensor.end);
    ASSERT_GE(files[tensor.file].size(), tensor.end);
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const std::uint64_t found =
          slow::load(files[tensor.file].data() + tensor.begin, static_cast<std::int64_t>(i), dtype);
      ASSERT_TRUE(is_same(dtype, found, bits[i]))
          << tensor.name << " element " << i << ": expected " << bits[i] << ", found " << found;
    }
  }
  for (std::size_t f = 0; f < files.size(); ++f) EXPECT_EQ(files[f].size(), ends[f]);
}

/// Sources of which some are moved to devices, where the trainer's streams have yet to write their values.
struct DeviceSources {
  std::vector<std::vector<TensorSpec>> specs;  // by rank

  /// `one_in`: about one tensor of so many stays in CPU memory; 0: none does.
  DeviceSources(FakeDevices& devices, Random& random, const RandomExport& state, std::int64_t one_in,
                DeviceOptions& options)
      : devices_(devices) {
    for (const RankTensors& rank : state.ranks) {
      specs.push_back(rank.specs);
      for (std::size_t n = 0; n < rank.specs.size(); ++n) {
        if (one_in > 0 && random.once_in(one_in)) continue;
        TensorSpec& spec = specs.back()[n];
        const Bytes& bytes = rank.memory[n].bytes;
        const int device = static_cast<int>(random.between(0, 2));
        moved_.push_back({devices.tensor_memory(device, bytes.size()), &bytes});
        spec.data = moved_.back().first + (static_cast<const std::uint8_t*>(spec.data) - bytes.data());
        spec.device = DeviceKind::cuda;
        spec.device_index = device;
        spec.device_name = "cuda:" + std::to_string(device);
        DeviceStream stream = devices.stream_that_writes(device, moved_.back().first, bytes);
        if (random.once_in(2)) options.streams[device] = stream;  // else the default one, which it is
      }
    }
    options.calls = devices.calls();
  }

  /// Nothing has written to the tensors.
  void expect_unchanged() {
    devices_.open_memory();
    for (const auto& [memory, bytes] : moved_)
      EXPECT_EQ(std::memcmp(memory, bytes->data(), bytes->size()), 0);
  }

 private:
  FakeDevices& devices_;
  std::vector<std::pair<std::byte*, const Bytes*>> moved_;
};

}  // namespace shardwright
