#include "storage/boxes/state_dict_memory.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "planner/names/encodings.h"
#include "planner/names/packed_weights.h"

namespace shardwright {
namespace {

using Chunk = std::pair<SourceTensor, StridedMemory>;

StridedMemory memory_at(const TensorSpec& spec, const Shape& local_offset) {
  const auto* data = static_cast<const std::byte*>(spec.data);
  if (data != nullptr) data += elements_to(local_offset, spec.local_strides) * bytes_of(spec.dtype);
  return {data, spec.local_strides};
}

void add_chunks(const TensorSpec& spec, std::vector<Chunk>& chunks) {
  Shape reach(spec.global_shape.size());
  for (const LocalBox& box : spec.boxes) {
    chunks.push_back(
        {{spec.fqn, spec.dtype, box.global.size, box.global.offset}, memory_at(spec, box.local_offset)});
    for (std::size_t d = 0; d < reach.size(); ++d) {
      reach[d] = std::max(reach[d], box.global.offset[d] + box.global.size[d]);
    }
  }
  if (spec.boxes.empty() || reach != spec.global_shape) {
    chunks.push_back(
        {{spec.fqn, spec.dtype, Shape(reach.size()), spec.global_shape}, {nullptr, Shape(reach.size(), 1)}});
  }
}

/// Strides of a packed weight's elements, of those that its bytes or words have in memory. Throws
/// Error(argument) for elements of a row that do not lie side by side.
Shape strides_as_seen(const SourceTensor& tensor, const Shape& strides) {
  if (!is_packed(tensor.dtype)) return strides;
  const StoredForm& stored = *tensor.stored;
  Shape of_elements = strides;
  const std::int64_t in_unit = 8 * bytes_of(stored.dtype) / bits_of(tensor.dtype);
  bool side_by_side = strides.back() == 1 || stored.shape.back() <= 1;
  if (stored.shape.size() > tensor.shape.size()) {  // blocks of a row are a dimension of their own
    side_by_side = side_by_side && (strides.end()[-2] == stored.shape.back() || stored.shape.end()[-2] <= 1);
    of_elements.pop_back();
  }
  if (!side_by_side)
    throw Error(
        ErrorKind::argument,
        stored.name + ": expected the bytes of a row side by side, found strides " + to_string(strides));
  for (std::int64_t& stride : of_elements) stride *= in_unit;
  of_elements.back() = 1;
  return of_elements;
}

/// The catalog with packed weights as rules know them, and their memory with them.
void see_packed(StateDictMemory& held) {
  for (std::size_t t = 0; t < held.catalog.tensors.size(); ++t) {
    held.catalog.tensors[t].begin = t;  // which are in no file: tells where each has gone
  }
  see_packed_weights(held.catalog);
  std::vector<StridedMemory> memory;
  for (SourceTensor& tensor : held.catalog.tensors) {
    StridedMemory& of_tensor = memory.emplace_back(held.memory[tensor.begin]);
    of_tensor.strides = strides_as_seen(tensor, of_tensor.strides);
    tensor.begin = 0;
  }
  held.memory = std::move(memory);
}

}  // namespace

StateDictMemory memory_of(const std::vector<TensorSpec>& hf_tensors) {
  std::vector<Chunk> chunks;
  std::set<std::string_view> names;
  for (const TensorSpec& spec : hf_tensors) {
    if (!names.insert(spec.fqn).second) {
      throw Error(ErrorKind::argument,
                  spec.fqn + ": expected each name once in a state dict, found it twice");
    }
    add_chunks(spec, chunks);
  }
  std::sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) {
    return std::tie(a.first.name, a.first.offset) < std::tie(b.first.name, b.first.offset);
  });
  StateDictMemory held;
  held.catalog.directory = "this state dict";
  held.catalog.files = {{"memory", 0}};
  held.catalog.tensors.reserve(chunks.size());
  for (auto& [tensor, memory] : chunks) {
    held.catalog.tensors.push_back(std::move(tensor));
    held.memory.push_back(std::move(memory));
  }
  see_packed(held);
  return held;
}

LoadPlanOptions options_for_memory(bool exporting) {
  LoadPlanOptions options;
  options.strict = false;
  options.parts_elsewhere = true;
  options.exporting = exporting;
  return options;
}

}  // namespace shardwright
