#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/models/models.h"
#include "planner/names/companions.h"
#include "storage/format/read_catalog.h"
#include "tests/kernels/slow_definition.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {

using Bytes = std::vector<std::uint8_t>;

/// Makes scales of any bytes ones that loads take: neither the byte 255 of e8m0, nor negative, infinite or
/// NaN.
inline void make_magnitudes(DType dtype, Bytes& scales) {
  const auto size = static_cast<std::size_t>(bytes_of(dtype));
  for (std::size_t last = size - 1; last < scales.size(); last += size) {
    if (dtype == DType::U8 || dtype == DType::F8_E8M0) {
      if (scales[last] == 255) scales[last] = 254;
      continue;
    }
    scales[last] &= 0x7F;
    if (size >= 2 && scales[last] == 0x7F) scales[last - 1] &= 0x7F;  // the largest exponent becomes the next
    if (size == 1 && scales[last] == 0x7F) scales[last] = 0x7E;
  }
}

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
      if (is_scale_name(tensor.name)) make_magnitudes(tensor.dtype, data);
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

/// True if the destination's bytes are what the definition gives for that HF element.
inline bool is_decoded(const Checkpoint& checkpoint, const HfElement& hf, const std::uint8_t* found,
                       DType dtype) {
  const Stored& tensor = checkpoint.tensors.at(hf.name);
  const std::uint64_t element =
      slow::load(checkpoint.bytes.at(hf.name).data(), static_cast<std::int64_t>(flat(hf.index, tensor.shape)),
                 tensor.dtype);
  std::uint64_t expected = slow::converted(tensor.dtype, dtype, element);
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    const auto found_scales = checkpoint.tensors.find(hf.name + suffix);
    if (found_scales == checkpoint.tensors.end()) continue;
    const Stored& scales = found_scales->second;
    const auto number = static_cast<std::int64_t>(
        flat(scale_element(scales.dtype, scales.shape, hf.index).index, scales.shape));
    const std::uint64_t scale = slow::load(checkpoint.bytes.at(scales.name).data(), number, scales.dtype);
    const Product product = slow::is_e8m0(scales.dtype) ? Product::exact_once : Product::to_f32_first;
    expected = slow::decoded(dtype, tensor.dtype, element, {scales.dtype, product}, scale);
  }
  const std::uint64_t actual = slow::load(found, 0, dtype);
  if (actual == expected || tensor.dtype == dtype) return actual == expected;
  return std::isnan(slow::value_of(dtype, actual)) && std::isnan(slow::value_of(dtype, expected));
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

inline std::uint8_t* address(const TensorSpec& spec, const Shape& at) {
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < at.size(); ++d) offset += at[d] * spec.local_strides[d];
  return static_cast<std::uint8_t*>(spec.data) + offset * bytes_of(spec.dtype);
}

/// What one rank of a random mesh holds of each tensor of a model, in memory of its own.
struct Destinations {
  std::vector<Native> natives;
  std::vector<TensorSpec> specs;
  std::vector<IndexLists> lists;
  std::vector<Memory> memory;

  Destinations(Random& random, const RandomModel& model) : natives(model.natives), memory(natives.size()) {
    for (std::size_t n = 0; n < natives.size(); ++n) {
      const auto& [fqn, dtype, shape] = natives[n];
      const Mesh mesh = random_mesh(random, std::ssize(shape));
      Shape coordinate;
      for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
      specs.push_back(sharded_tensor(fqn, dtype, shape, mesh.shape, coordinate, mesh.placements));
      lists.push_back(index_lists(shape, mesh, coordinate));
      memory[n].give(random, specs.back());
    }
  }

  LoadPlan plan(const Checkpoint& checkpoint) const {
    return plan_load(specs, checkpoint.catalog, weight_map_for(checkpoint.catalog, "minimax_m3"));
  }

  /// Every element of that destination is what plain decoding gives.
  bool is_decoded_at(const Checkpoint& checkpoint, std::size_t n) const {
    bool all = true;
    for_each_index(specs[n].local_shape, [&](const Shape& at) {
      const HfElement hf = hf_element(natives[n], global_index(lists[n], at));
      all = all && is_decoded(checkpoint, hf, address(specs[n], at), specs[n].dtype);
    });
    return all;
  }

  /// Every element is what plain decoding gives, and the memory between them is as it was.
  void expect_decoded(const Checkpoint& checkpoint) const {
    for (std::size_t n = 0; n < specs.size(); ++n) {
      std::set<const std::uint8_t*> written;
      for_each_index(specs[n].local_shape, [&](const Shape& at) {
        const HfElement hf = hf_element(natives[n], global_index(lists[n], at));
        const std::uint8_t* found = address(specs[n], at);
        ASSERT_TRUE(is_decoded(checkpoint, hf, found, specs[n].dtype))
            << specs[n].fqn << to_string(at) << " from " << hf.name << to_string(hf.index);
        for (int byte = 0; byte < bytes_of(specs[n].dtype); ++byte) written.insert(found + byte);
      });
      for (const std::uint8_t& byte : memory[n].bytes)
        ASSERT_TRUE(byte == Memory::untouched || written.contains(&byte)) << specs[n].fqn;
    }
  }
};

}  // namespace shardwright
