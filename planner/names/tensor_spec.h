#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"

namespace shardwright {

/// How a DTensor lies along one dimension of its device mesh, with the meaning that torch.distributed.tensor
/// gives it.
struct Placement {
  enum class Kind : std::uint8_t { replicate, shard, strided_shard };

  Kind kind = Kind::replicate;
  int dimension = 0;  ///< tensor dimension that is split (shard, strided_shard)
  std::int64_t split_factor =
      1;  ///< strided_shard: into how many parts the dimension is cut before it is dealt out

  bool operator==(const Placement&) const = default;
};

/// A part of a local tensor that is one rectangle of the global tensor.
struct LocalBox {
  Box global;          ///< where it lies in the global tensor
  Shape local_offset;  ///< where it begins in the local tensor

  bool operator==(const LocalBox&) const = default;
};

/// The parts of the global tensor that one rank holds. Usually one box; several where strided shards leave
/// gaps; none where the rank's shard is empty.
///
/// Mesh dimensions are applied from left to right, each cutting what the ones before it left, as torch.chunk
/// cuts: all parts are ceil(size / parts) long, the last ones shorter or empty. Example: 5 rows on a mesh of
/// 2 × 2 with (shard 0, shard 0): 3 + 2 rows, then 2 + 1 and 1 + 1.
///
/// Source: torch 2.13, torch/distributed/tensor/_utils.py, _compute_local_shape_and_global_offset.
std::vector<LocalBox> local_boxes(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                                  const std::vector<Placement>& placements);

/// Shape of the local tensor that those boxes make up.
Shape local_shape(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                  const std::vector<Placement>& placements);

/// Where a tensor's memory is.
enum class DeviceKind : std::uint8_t {
  cpu,
  cuda,   ///< for loads and exports that have kernels for it; see load(), run_export()
  meta,   ///< nowhere
  other,  ///< where nothing here reads or writes
};

/// A tensor of the trainer as one rank sees it. Owns nothing: the caller keeps the memory alive.
/// Invariant (see fault_of): the boxes, placed at their local offsets, tile a tensor of `local_shape`
/// exactly.
struct TensorSpec {
  std::string fqn;  ///< fully qualified name
  DType dtype = DType::BF16;
  Shape global_shape;    ///< of the whole tensor over all ranks
  Shape local_shape;     ///< of this rank's part
  Shape local_strides;   ///< elements; any strides that give each element memory of its own, if it is written
  void* data = nullptr;  ///< element (0, …, 0) of the local tensor; may be null if the part is empty
  DeviceKind device = DeviceKind::cpu;
  int device_index = 0;  ///< of a CUDA device
  std::string device_name = "cpu";
  std::vector<LocalBox> boxes;  ///< which parts of the global tensor the local tensor holds
};

/// A spec of a tensor that this rank holds whole, contiguous at `data` in CPU memory, which the caller keeps
/// alive; null for a plan that is never run.
TensorSpec whole_tensor(std::string fqn, DType dtype, const Shape& shape, void* data = nullptr);

/// A spec of a DTensor's local part, contiguous at `data` in CPU memory, which the caller keeps alive: of a
/// tensor of `global_shape` on a mesh of `mesh_shape`, on which this rank stands at `coordinate`, with one
/// placement for each mesh dimension.
TensorSpec sharded_tensor(std::string fqn, DType dtype, const Shape& global_shape, const Shape& mesh_shape,
                          const Shape& coordinate, const std::vector<Placement>& placements,
                          void* data = nullptr);

/// What makes a spec impossible to write to, for messages; empty if nothing does: boxes that do not tile the
/// local tensor or leave the global one, memory on a device without data (meta), elements that share memory
/// (expanded), unless it is `only_read`.
std::string fault_of(const TensorSpec& spec, bool only_read = false);

/// True if the rank holds something of this box of the global tensor.
bool touches(const TensorSpec& spec, const Box& box);

/// Pairs of specs whose memory overlaps, one message for each; empty if none does.
std::vector<std::string> shared_memory(const std::vector<TensorSpec>& specs);

/// The same of some of a caller's specs.
std::vector<std::string> shared_memory(std::span<const TensorSpec* const> specs);

}  // namespace shardwright
