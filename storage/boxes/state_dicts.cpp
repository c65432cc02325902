#include "storage/boxes/state_dicts.h"

#include <cstddef>
#include <string>
#include <unordered_set>
#include <utility>

#include "kernels/decode.h"
#include "planner/error.h"
#include "planner/geometry/lattice.h"
#include "planner/load/load_plan.h"
#include "planner/load/transfers.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/spec_parts.h"
#include "planner/problems.h"
#include "storage/boxes/place_from_memory.h"
#include "storage/boxes/placing.h"
#include "storage/boxes/state_dict_memory.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

void fill_with_ones(const TensorSpec& spec) {
  constexpr float one = 1;
  std::vector<CopiedDimension> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d)
    dimensions.push_back({spec.local_shape[d], 0, spec.local_strides[d]});
  if (volume(spec.local_shape) == 0) return;
  copy_box(dimensions, DType::F32, spec.dtype, reinterpret_cast<const std::byte*>(&one),
           static_cast<std::byte*>(spec.data));
}

/// Refuses HF tensors that would stay as they are, in whole or in part, or cannot take what they get.
void expect_all_filled(const LoadPlan& plan, const StateDictMemory& held,
                       const std::vector<TensorSpec>& native, const WeightMap& map) {
  Problems problems;
  const std::vector<SourceTensor>& tensors = held.catalog.tensors;
  std::vector<std::int64_t> filled(tensors.size());
  for (const Transfer& transfer : plan.transfers) {
    const SourceTensor& source = tensors[transfer.source];
    filled[transfer.source] += volume(transfer.source_box.size);
    const DType from = native[transfer.destination].dtype;
    if (transfer.encoding.scaled) {
      problems.add(source.name +
                   ": expected a tensor without scales, found some beside it; export_checkpoint() "
                   "encodes");
    } else if (!can_convert(from, source.dtype)) {
      problems.add(source.name + ": expected a dtype that " + std::string(name_of(from)) +
                   " can be cast to, found " + std::string(name_of(source.dtype)));
    } else if (volume(source.shape) > 0 && held.memory[transfer.source].data == nullptr) {
      problems.add(source.name + ": expected memory, found none");
    }
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (filled[i] == volume(tensors[i].shape) || is_multiplier(map, tensors[i].name)) continue;
    problems.add(tensors[i].name + ": expected native tensors that hold its " +
                 std::to_string(volume(tensors[i].shape)) + " elements, found " + std::to_string(filled[i]));
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "these tensors cannot be filled from the native ones; none has been changed:");
}

void copy_to_source(const Transfer& transfer, const SourceTensor& source, const StridedMemory& memory,
                    const TensorSpec& native) {
  const Lattice in_native = written_lattice(transfer);
  const Shape native_strides = strides_along(in_native, native.local_strides);
  const Shape hf_strides = transfer.source_view.empty()
                               ? memory.strides
                               : strides_along(read_lattice(transfer, source), memory.strides);
  const auto* from = static_cast<const std::byte*>(native.data) +
                     elements_to(in_native.first, native.local_strides) * bytes_of(native.dtype);
  auto* to = const_cast<std::byte*>(memory.data) +  // the caller's own, handed over to be written
             elements_to(transfer.source_box.offset, hf_strides) * bytes_of(source.dtype);
  copy_box(copied_dimensions(transfer.source_box.size, native_strides, hf_strides), native.dtype,
           source.dtype, from, to);
}

}  // namespace

std::vector<TensorSpec> hf_tensors_of(const std::vector<TensorSpec>& native, const WeightMap& map) {
  std::vector<TensorSpec> tensors;
  std::unordered_set<std::string> names;
  Problems problems;
  for (const TensorSpec& spec : native) {
    const std::vector<Piece> pieces = pieces_of(map, spec.fqn, spec.global_shape);
    if (pieces.empty()) problems.add(spec.fqn + ": no rule knows it");
    for (const Piece& piece : pieces) {
      const Box hull = hull_of(piece);
      if (piece.rule->only_read || !touches(spec, hull)) continue;
      if (!holds(spec, hull)) {
        problems.add(piece.hf_name + ": expected all of it in " + spec.fqn +
                     ", of which this rank holds a part");
      } else if (names.insert(piece.hf_name).second) {
        tensors.push_back(whole_tensor(piece.hf_name, spec.dtype, piece.hf_shape));
        if (!piece.multiplier.empty())
          tensors.push_back(
              whole_tensor(piece.multiplier, spec.dtype, {piece.hf_shape.begin(), piece.hf_shape.end() - 2}));
      }
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "these native tensors do not become whole HF tensors here:");
  return tensors;
}

void from_hf(const std::vector<TensorSpec>& hf, const std::vector<TensorSpec>& native, const WeightMap& map,
             int threads) {
  const StateDictMemory held = memory_of(hf);
  const LoadPlan plan = plan_load(native, held.catalog, map, options_for_memory(false));
  place_from_memory(plan, held.catalog, held.memory, native, threads);
}

void to_hf(const std::vector<TensorSpec>& native, const std::vector<TensorSpec>& hf, const WeightMap& map,
           int threads) {
  const StateDictMemory held = memory_of(hf);
  const LoadPlan plan = plan_load(native, held.catalog, map, options_for_memory(true));
  expect_all_filled(plan, held, native, map);
  expect_cpu_memory(plan, native, "an adapter");
  for (const TensorSpec& spec : hf) {
    if (spec.device != DeviceKind::cpu)
      throw Error(ErrorKind::argument, spec.fqn + ": expected CPU memory, found it on " + spec.device_name);
  }
  for (const TensorSpec& spec : hf) {
    if (is_multiplier(map, spec.fqn)) fill_with_ones(spec);
  }
  for_each_index(plan.transfers.size(), threads, [&](std::size_t i) {
    const Transfer& transfer = plan.transfers[i];
    copy_to_source(transfer, held.catalog.tensors[transfer.source], held.memory[transfer.source],
                   native[transfer.destination]);
  });
}

}  // namespace shardwright
