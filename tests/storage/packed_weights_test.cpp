#include "planner/names/packed_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "planner/load/plan_wire.h"
#include "planner/names/held_tensors.h"
#include "storage/format/read_catalog.h"
#include "storage/load/load.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/fake_devices.h"

namespace shardwright {
namespace {

/// A tensor to write.
struct Written {
  std::string name;
  std::string dtype;
  std::string shape;  ///< "3,4"
  std::string bytes;
};

std::string bytes_from(Random& random, std::size_t count, int lowest, int highest) {
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) bytes += static_cast<char>(random.between(lowest, highest));
  return bytes;
}

std::string bytes_of_float(float number) {
  std::string bytes(sizeof number, '\0');
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

void write(const std::filesystem::path& path, const std::vector<Written>& tensors) {
  std::string json = "{";
  std::string data;
  for (const Written& tensor : tensors) {
    json += (json.size() > 1 ? "," : "") + ("\"" + tensor.name + "\":{\"dtype\":\"" + tensor.dtype) +
            "\",\"shape\":[" + tensor.shape + "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
            std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data += tensor.bytes;
  }
  json += "}";
  write_file(path, little_endian(json.size()) + json + data);
}

/// MXFP4, INT4 and both NVFP4, of 10 rows.
std::vector<Written> packed_weights(Random& random) {
  std::string bf16;
  for (int i = 0; i < 30; ++i) bf16 += {static_cast<char>(random.between(0, 255)), '\x3B'};
  std::string shape(16, '\0');
  shape[0] = 10;
  shape[8] = 96;
  return {
      {"fp4.weight_packed", "U8", "10,45", bytes_from(random, 450, 0, 255)},
      {"fp4.weight_scale", "U8", "10,3", bytes_from(random, 30, 110, 140)},
      {"int.weight_packed", "I32", "10,12", bytes_from(random, 480, 0, 255)},
      {"int.weight_scale", "BF16", "10,3", bf16},
      {"int.weight_shape", "I64", "2", shape},
      {"nv.weight", "U8", "10,25", bytes_from(random, 250, 0, 255)},
      {"nv.weight_scale", "F8_E4M3", "10,4", bytes_from(random, 40, 1, 126)},
      {"nv.weight_scale_2", "F32", "", bytes_of_float(0.0123F)},
      {"ct.weight_packed", "U8", "10,25", bytes_from(random, 250, 0, 255)},
      {"ct.weight_scale", "F8_E4M3", "10,4", bytes_from(random, 40, 1, 126)},
      {"ct.weight_global_scale", "F32", "1", bytes_of_float(123.4F)},
  };
}

/// Columns [begin, end) of each weight, row-major or turned.
struct Shards {
  std::vector<TensorSpec> specs;
  std::vector<std::vector<std::uint16_t>> memory;

  Shards(const Catalog& catalog, std::int64_t begin, std::int64_t end, bool turned) {
    for (const char* name : {"fp4.weight", "int.weight", "nv.weight", "ct.weight"}) {
      const Shape shape = catalog.find(name).front().shape;
      end = std::min(end, shape[1]);
      const std::int64_t columns = end - begin;
      memory.emplace_back(static_cast<std::size_t>(10 * columns), 0x5A5A);
      TensorSpec spec = whole_tensor(name, DType::BF16, shape);
      spec.local_shape = {10, columns};
      spec.local_strides = turned ? Shape{1, 10} : Shape{columns, 1};
      spec.boxes = {{{{0, begin}, {10, columns}}, {0, 0}}};
      spec.data = memory.back().data();
      specs.push_back(std::move(spec));
    }
  }
};

TEST(packed_weights, devices_get_what_the_cpu_gets_and_plans_come_back_from_the_wire) {
  const TemporaryDirectory directory;
  Random random(1);
  write(directory / "model.safetensors", packed_weights(random));
  const Catalog catalog = read_catalog(directory.path);
  for (std::uint64_t round = 0; round < 40; ++round) {
    const std::int64_t begin = random.between(0, 30);
    const std::int64_t end = random.between(begin + 1, 96);
    const bool turned = random.once_in(2);
    Shards on_cpu(catalog, begin, end, turned);
    const LoadPlan plan = plan_load(on_cpu.specs, catalog, unchanged_names());
    ASSERT_EQ(decode_plan(encode_plan(plan, catalog, on_cpu.specs), catalog, on_cpu.specs), plan);
    load(plan, catalog, on_cpu.specs);

    FakeDevices devices(round);
    Shards on_device(catalog, begin, end, turned);
    std::vector<std::byte*> moved;
    LoadOptions options;
    options.devices.calls = devices.calls();
    for (TensorSpec& spec : on_device.specs) {
      const auto bytes = static_cast<std::size_t>(2 * volume(spec.local_shape));
      moved.push_back(devices.tensor_memory(0, bytes));
      spec.data = moved.back();
      spec.device = DeviceKind::cuda;
      spec.device_index = 0;
      spec.device_name = "cuda:0";
    }
    options.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 4096, 20000}));
    load(plan, catalog, on_device.specs, options);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << round;
    devices.open_memory();
    for (std::size_t n = 0; n < moved.size(); ++n)
      ASSERT_EQ(std::memcmp(moved[n], on_cpu.memory[n].data(), on_cpu.memory[n].size() * 2), 0)
          << on_cpu.specs[n].fqn << " round " << round;
  }
}

TEST(packed_weights, are_seen_by_their_own_names_and_go_back_to_those_of_the_files) {
  const TemporaryDirectory directory;
  Random random(2);
  const std::vector<Written> tensors = packed_weights(random);
  write(directory / "model.safetensors", tensors);
  const Catalog seen = read_catalog(directory.path);
  const auto form = [&](const char* name) {
    const SourceTensor& tensor = seen.find(name).front();
    return std::string(name_of(tensor.dtype)) + " " + to_string(tensor.shape) + " " + stored_name(tensor);
  };
  EXPECT_EQ(form("fp4.weight"), "F4 [10, 90] fp4.weight_packed");
  EXPECT_EQ(form("int.weight"), "I4 [10, 96] int.weight_packed");
  EXPECT_EQ(form("nv.weight"), "F4 [10, 50] nv.weight");
  const Catalog stored = as_stored(seen);
  ASSERT_EQ(stored.tensors.size(), tensors.size());
  for (const Written& tensor : tensors) {
    ASSERT_EQ(stored.find(tensor.name).size(), 1U) << tensor.name;
    EXPECT_EQ(name_of(stored.find(tensor.name).front().dtype), tensor.dtype) << tensor.name;
    EXPECT_EQ(stored.find(tensor.name).front().end - stored.find(tensor.name).front().begin,
              tensor.bytes.size());
  }
}

}  // namespace
}  // namespace shardwright
