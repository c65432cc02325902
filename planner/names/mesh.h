#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/geometry/placement.h"
#include "planner/names/native_tensors.h"
#include "planner/names/tensor_spec.h"

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

/// Throws Error(argument) if there are more than 63 bits can count.
std::int64_t ranks_of(const std::vector<MeshDimension>& mesh);

/// Row-major. Throws Error(argument) for a rank that is not on the mesh.
Shape coordinate_of(const std::vector<MeshDimension>& mesh, std::int64_t rank);

/// Among which ranks the tensors that are no experts are divided.
enum class DenseSharding : std::uint8_t {
  by_mesh,  ///< `stage` on a mesh with pp or dp, which then speaks of a whole training job; `named` otherwise
  named,    ///< along the dimensions that say so: fsdp, dp, shard; the others replicate them
  stage  ///< all ranks of a stage, along every dimension but pp and replicate, as trainers do: the ranks of
         ///< ep are data-parallel ranks for all that is no expert
};

/// "auto", "named", "stage". Throws Error(argument) for anything else.
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

  std::int64_t ranks() const { return ranks_; }
  std::int64_t stages() const { return stages_; }
  const std::vector<NativeTensor>& tensors() const { return tensors_; }

  std::int64_t stage_of_rank(std::int64_t rank) const;
  std::int64_t stage_of_tensor(std::size_t tensor) const { return stage_of_tensor_[tensor]; }

  /// The mesh of one stage, that is without pp, and how the tensor lies on that of its stage.
  Shape shape_of_stage() const;
  std::vector<Placement> placements_in_stage(std::size_t tensor) const;

  /// How many ranks hold the same part of the tensor, and which of them this one is, from 0.
  std::int64_t copies(std::size_t tensor) const;
  std::int64_t copy_of_rank(std::size_t tensor, std::int64_t rank) const;

  /// The tensors of the rank's stage, in order: indices into tensors(), and the specs of this rank's parts.
  std::vector<std::size_t> tensors_of_rank(std::int64_t rank) const;
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

/// The same for one rank.
std::vector<TensorSpec> specs_on_mesh(const std::vector<NativeTensor>& tensors,
                                      const std::vector<MeshDimension>& mesh, std::int64_t rank,
                                      DenseSharding dense = DenseSharding::by_mesh);

}  // namespace shardwright
