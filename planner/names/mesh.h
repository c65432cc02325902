#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// A device mesh with named dimensions, and what each means for a state dict when no trainer is at hand to
/// say so. Sizes multiply to the number of ranks, which are numbered row-major in the order of the
/// dimensions.
///
///   name          experts          all other tensors   what it stands for
///   pp            the stage's      the stage's         pipeline parallel: see pipeline_stages
///   dp            dimension 1      dimension 0         fully sharded data parallel, expert data parallel
///   ep            dimension 0      see DenseSharding   expert parallel
///   ep_shard      dimension 1      see DenseSharding   each expert cut
///   ep_replicate  whole            see DenseSharding   copies of the experts
///   fsdp          whole            dimension 0         fully sharded data parallel, not of experts
///   shard         dimension 0      dimension 0
///   replicate     whole            whole               copies of everything (HSDP)
struct MeshDimension {
  std::string name;
  std::int64_t size;
};

/// Reads "ep=8,ep_shard=2". Throws Error(argument) for anything else, naming the dimensions there are, and
/// for a name that comes twice.
std::vector<MeshDimension> parse_mesh(const std::string& text);

/// How many ranks the mesh has: the product of its sizes. Throws Error(argument) if there are more than 63
/// bits can count.
std::int64_t ranks_of(const std::vector<MeshDimension>& mesh);

/// Where the rank stands on the mesh: an index for each dimension, ranks counted row-major. Throws
/// Error(argument) for a rank that is not on the mesh.
Shape coordinate_of(const std::vector<MeshDimension>& mesh, std::int64_t rank);

/// Among which ranks the tensors that are no experts are divided.
enum class DenseSharding : std::uint8_t {
  by_mesh,  ///< `stage` on a mesh with pp or dp, which then speaks of a whole training job; `named` otherwise
  named,    ///< along the dimensions that say so: fsdp, dp, shard; the others replicate them
  stage  ///< all ranks of a stage, along every dimension but pp and replicate, as trainers do: the ranks of
         ///< ep are data-parallel ranks for all that is no expert
};

/// The sharding that "auto", "named" or "stage" means. Throws Error(argument) for anything else.
DenseSharding dense_sharding_named(const std::string& name);

/// How the tensor lies on that mesh, within its stage: pp replicates it.
std::vector<Placement> placements_on_mesh(const NativeTensor& tensor, const std::vector<MeshDimension>& mesh,
                                          DenseSharding dense = DenseSharding::by_mesh);

/// The pipeline stage, from 0, of each tensor: consecutive layers, at least one in each stage, what comes
/// before the layers in the first and what comes after them in the last. The cuts are those that make the
/// sum of the squares of the stages' bytes (of the native tensors) least, so that stages are as even as whole
/// layers allow. Throws Error(argument) if there are more stages than layers.
std::vector<std::int64_t> pipeline_stages(const std::vector<NativeTensor>& tensors, std::int64_t stages);

/// What each rank of a mesh would hold, without memory.
class TensorsOnMesh {
 public:
  /// Throws Error(argument) as pipeline_stages does.
  TensorsOnMesh(std::vector<NativeTensor> tensors, std::vector<MeshDimension> mesh,
                DenseSharding dense = DenseSharding::by_mesh);

  /// How many ranks the mesh has.
  std::int64_t ranks() const { return ranks_; }

  /// How many pipeline stages: the size of pp, or 1.
  std::int64_t stages() const { return stages_; }

  /// All tensors, in the order in which they were given.
  const std::vector<NativeTensor>& tensors() const { return tensors_; }

  /// The pipeline stage of a rank, from 0. Throws Error(argument) for a rank that is not on the mesh.
  std::int64_t stage_of_rank(std::int64_t rank) const;

  /// The pipeline stage of a tensor, which is an index into tensors().
  std::int64_t stage_of_tensor(std::size_t tensor) const { return stage_of_tensor_[tensor]; }

  /// The sizes of the mesh of one stage, that is without pp.
  Shape shape_of_stage() const;

  /// How the tensor lies on the mesh of its stage: a placement for each of its dimensions.
  std::vector<Placement> placements_in_stage(std::size_t tensor) const;

  /// How many ranks hold the same part of the tensor.
  std::int64_t copies(std::size_t tensor) const;

  /// Which of those that hold the same part this rank is, from 0.
  std::int64_t copy_of_rank(std::size_t tensor, std::int64_t rank) const;

  /// The tensors of the rank's stage, in order: indices into tensors().
  std::vector<std::size_t> tensors_of_rank(std::int64_t rank) const;

  /// The rank's parts of these tensors, in that order, without memory.
  std::vector<TensorSpec> specs_of_rank(std::int64_t rank) const;

 private:
  std::vector<NativeTensor> tensors_;
  std::vector<MeshDimension> mesh_;
  Shape sizes_;  // of the mesh
  std::vector<std::vector<Placement>> placements_;
  std::vector<std::int64_t> stage_of_tensor_;
  std::int64_t ranks_;
  std::int64_t stages_ = 1;
};

/// What one rank of the mesh would hold: TensorsOnMesh::specs_of_rank(). Throws as TensorsOnMesh.
std::vector<TensorSpec> specs_on_mesh(const std::vector<NativeTensor>& tensors,
                                      const std::vector<MeshDimension>& mesh, std::int64_t rank,
                                      DenseSharding dense = DenseSharding::by_mesh);

}  // namespace shardwright
