#pragma once

#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/tensor_spec.h"
#include "planner/weight_map.h"

namespace shardwright {

/// A tensor of the trainer, over all ranks.
struct NativeTensor {
  std::string fqn;
  DType dtype;
  Shape shape;
  bool stacked;  ///< dimension 0 counts experts
};

/// The native tensors that a checkpoint fills: what a trainer of this layout would hold, in the order of the
/// names. Block-scaled weights become `dtype`; the others keep the dtype they are stored in. Tensors that no
/// rule knows are left out. The number of experts is the largest that the checkpoint has, plus one. Throws
/// Error(malformed) for an expert that is numbered higher than the checkpoint has tensors.
std::vector<NativeTensor> native_tensors(const Catalog& catalog, const WeightMap& map,
                                         DType dtype = DType::BF16);

/// A device mesh with named dimensions, and what each means for a state dict when no trainer is at hand to
/// say so.
struct MeshDimension {
  std::string name;  ///< ep, ep_shard, ep_replicate (experts), fsdp (all others), shard (both), replicate
  std::int64_t size;
};

/// Reads "ep=8,ep_shard=2". Throws Error(argument) for anything else, naming the dimensions there are.
std::vector<MeshDimension> parse_mesh(const std::string& text);

/// The specs that a rank of such a mesh would hold, without memory: "ep" shards dimension 0 of the expert
/// tensors, "ep_shard" their dimension 1, "fsdp" dimension 0 of all other tensors, "shard" dimension 0 of
/// every tensor; a dimension that does not speak of a tensor replicates it. Ranks are numbered row-major over
/// the mesh.
std::vector<TensorSpec> specs_on_mesh(const std::vector<NativeTensor>& tensors,
                                      const std::vector<MeshDimension>& mesh, std::int64_t rank);

/// How the tensor lies on that mesh.
std::vector<Placement> placements_on_mesh(const NativeTensor& tensor, const std::vector<MeshDimension>& mesh);

}  // namespace shardwright
