#include "storage/boxes/state_dict_memory.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

using Chunk = std::pair<SourceTensor, SourceMemory>;

SourceMemory memory_at(const TensorSpec& spec, const Shape& local_offset) {
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
