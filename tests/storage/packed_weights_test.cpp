#include "planner/names/packed_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "planner/load/plan_wire.h"
#include "planner/models/models.h"
#include "planner/names/held_tensors.h"
#include "planner/names/packed_tensors.h"
#include "storage/files/input_file.h"
#include "storage/format/read_catalog.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/jobs/load_checkpoint.h"
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

TEST(packed_weights, a_job_loads_them_as_they_are_and_an_export_writes_them_back) {
  const TemporaryDirectory directory;
  Random random(3);
  const std::vector<Written> tensors = packed_weights(random);
  std::filesystem::create_directory(directory / "from");
  write(directory / "from" / "model.safetensors", tensors);
  const Catalog catalog = read_catalog(directory / "from");
  const Packed packed = as_packed(catalog, weight_map_for(catalog, "auto", "huggingface"));
  std::map<std::string, std::string> memory;
  std::vector<TensorSpec> specs;
  for (const NativeTensor& native : native_tensors(packed.catalog, packed.map)) {
    std::string& bytes = memory[native.fqn];
    bytes.resize(static_cast<std::size_t>(volume(native.shape) * bytes_of(native.dtype)), '\x5A');
    specs.push_back(whole_tensor(native.fqn, native.dtype, native.shape, bytes.data()));
  }
  EXPECT_EQ(specs.size(), tensors.size() - 1);  // the shape says how the words are packed
  CheckpointLoadOptions how;
  how.layout = "huggingface";
  how.packed = true;
  load_checkpoint(specs, directory / "from", {}, how);
  for (const Written& tensor : tensors) {
    if (tensor.name == "int.weight_shape") continue;
    const std::string ending = "_packed";
    const bool is_codes = tensor.name.ends_with(ending);
    EXPECT_EQ(memory.at(is_codes ? tensor.name.substr(0, tensor.name.size() - ending.size()) : tensor.name),
              tensor.bytes)
        << tensor.name;
  }

  ExportOptions to;
  to.layout = "huggingface";
  to.template_directory = directory / "from";
  export_checkpoint(specs, directory / "to", {}, to);
  const Catalog back = as_stored(read_catalog(directory / "to"));
  EXPECT_EQ(back.tensors.size(), tensors.size());
  for (const Written& tensor : tensors) {
    const SourceTensor& found = back.find(tensor.name).front();
    const InputFile file(back.path_of(found));
    std::string bytes(found.end - found.begin, '\0');
    file.read(found.begin, bytes.data(), bytes.size());
    EXPECT_EQ(bytes, tensor.bytes) << tensor.name;
  }

  specs.erase(std::find_if(specs.begin(), specs.end(),
                           [](const TensorSpec& spec) { return spec.fqn == "nv.weight_scale_2"; }));
  expect_error(ErrorKind::mismatch, {"nv.weight: holds packed codes", "nv.weight_scale_2"},
               [&] { load_checkpoint(specs, directory / "from", {}, how); });
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
