#include "planner/names/mesh.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <limits>
#include <string_view>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

constexpr int whole_tensor_dimension = -1;

/// Which dimension of a tensor a dimension of the mesh shards.
struct Word {
  std::string_view name;
  int of_experts;
  int of_others;
  int of_others_over_stage;  ///< DenseSharding::stage
};

constexpr std::array mesh_words = {
    Word{"pp", whole_tensor_dimension, whole_tensor_dimension, whole_tensor_dimension},
    Word{"dp", 1, 0, 0},
    Word{"ep", 0, whole_tensor_dimension, 0},
    Word{"ep_shard", 1, whole_tensor_dimension, 0},
    Word{"ep_replicate", whole_tensor_dimension, whole_tensor_dimension, 0},
    Word{"fsdp", whole_tensor_dimension, 0, 0},
    Word{"shard", 0, 0, 0},
    Word{"replicate", whole_tensor_dimension, whole_tensor_dimension, whole_tensor_dimension},
};

const Word* find_word(std::string_view name) {
  const auto* word = std::find_if(mesh_words.begin(), mesh_words.end(),
                                  [&](const Word& candidate) { return candidate.name == name; });
  return word == mesh_words.end() ? nullptr : word;
}

bool has_dimension(const std::vector<MeshDimension>& mesh, std::string_view name) {
  return std::any_of(mesh.begin(), mesh.end(),
                     [&](const MeshDimension& dimension) { return dimension.name == name; });
}

bool over_stage(const std::vector<MeshDimension>& mesh, DenseSharding dense) {
  if (dense != DenseSharding::by_mesh) return dense == DenseSharding::stage;
  return has_dimension(mesh, "pp") || has_dimension(mesh, "dp");
}

Shape sizes_of(const std::vector<MeshDimension>& mesh) {
  Shape sizes;
  for (const MeshDimension& dimension : mesh) sizes.push_back(dimension.size);
  return sizes;
}

double bytes_of_tensor(const NativeTensor& tensor) {
  return static_cast<double>(volume(tensor.shape)) * static_cast<double>(bytes_of(tensor.dtype));
}

/// Cuts `bytes` into `stages` runs of at least one; returns where each begins.
std::vector<std::size_t> even_cuts(const std::vector<double>& bytes, std::size_t stages) {
  const std::size_t layers = bytes.size();
  std::vector<double> before(layers + 1, 0.0);
  for (std::size_t i = 0; i < layers; ++i) before[i + 1] = before[i] + bytes[i];
  // best[s][n]: the least sum of squares of the first n layers in s stages; begins[s][n]: where the last
  // begins.
  constexpr double impossible = std::numeric_limits<double>::infinity();
  std::vector best(stages + 1, std::vector<double>(layers + 1, impossible));
  std::vector begins(stages + 1, std::vector<std::size_t>(layers + 1, 0));
  best[0][0] = 0;
  for (std::size_t s = 1; s <= stages; ++s) {
    for (std::size_t n = s; n <= layers; ++n) {
      for (std::size_t begin = s - 1; begin < n; ++begin) {
        const double last = before[n] - before[begin];
        const double sum = best[s - 1][begin] + last * last;
        if (sum < best[s][n]) {
          best[s][n] = sum;
          begins[s][n] = begin;
        }
      }
    }
  }
  std::vector<std::size_t> cuts(stages);
  for (std::size_t s = stages, n = layers; s > 0; --s) {
    n = begins[s][n];
    cuts[s - 1] = n;
  }
  return cuts;
}

}  // namespace

std::vector<MeshDimension> parse_mesh(const std::string& text) {
  std::vector<MeshDimension> mesh;
  std::int64_t ranks = 1;
  for (std::size_t begin = 0; !text.empty() && begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const std::size_t equals = std::min(part.find('='), part.size());
    MeshDimension dimension{part.substr(0, equals), 0};
    const char* last = part.data() + part.size();
    const char* first = std::min(part.data() + equals + 1, last);
    const auto [stop, error] = std::from_chars(first, last, dimension.size);
    if (error != std::errc{} || stop != last || dimension.size < 1 ||
        __builtin_mul_overflow(ranks, dimension.size, &ranks) || find_word(dimension.name) == nullptr) {
      std::string names;
      for (const Word& word : mesh_words) names += std::string(word.name) + ", ";
      throw Error(ErrorKind::argument, "mesh '" + text + "': expected NAME=SIZE,... with the names " + names +
                                           "sizes of 1 or more and at most 2^63 - 1 ranks, found '" + part +
                                           "'");
    }
    if (has_dimension(mesh, dimension.name)) {
      throw Error(ErrorKind::argument, "mesh '" + text + "': expected each name once, found " +
                                           dimension.name + " again in '" + part + "'");
    }
    mesh.push_back(std::move(dimension));
    begin = end + 1;
  }
  return mesh;
}

std::int64_t ranks_of(const std::vector<MeshDimension>& mesh) {
  std::int64_t ranks = 1;
  for (const MeshDimension& dimension : mesh) {
    if (__builtin_mul_overflow(ranks, dimension.size, &ranks)) {
      throw Error(ErrorKind::argument, "mesh: expected at most 2^63 - 1 ranks, found more at " +
                                           dimension.name + "=" + std::to_string(dimension.size));
    }
  }
  return ranks;
}

Shape coordinate_of(const std::vector<MeshDimension>& mesh, std::int64_t rank) {
  const std::int64_t ranks = ranks_of(mesh);
  if (rank < 0 || rank >= ranks) {
    throw Error(ErrorKind::argument,
                "rank " + std::to_string(rank) + " is not on a mesh of " + std::to_string(ranks) + " ranks");
  }
  Shape coordinate(mesh.size());
  for (std::size_t d = mesh.size(); d-- > 0;) {
    coordinate[d] = rank % mesh[d].size;
    rank /= mesh[d].size;
  }
  return coordinate;
}

DenseSharding dense_sharding_named(const std::string& name) {
  if (name == "auto") return DenseSharding::by_mesh;
  if (name == "named") return DenseSharding::named;
  if (name == "stage") return DenseSharding::stage;
  throw Error(ErrorKind::argument, "dense: expected auto, named or stage, found '" + name + "'");
}

std::vector<Placement> placements_on_mesh(const NativeTensor& tensor, const std::vector<MeshDimension>& mesh,
                                          DenseSharding dense) {
  std::vector<Placement> placements;
  for (const MeshDimension& dimension : mesh) {
    const Word* word = find_word(dimension.name);
    int sharded = whole_tensor_dimension;
    if (word != nullptr) {
      sharded = tensor.stacked            ? word->of_experts
                : over_stage(mesh, dense) ? word->of_others_over_stage
                                          : word->of_others;
    }
    Placement placement;
    const bool is_cut = sharded != whole_tensor_dimension && sharded < std::ssize(tensor.shape);
    // One entry for all of the codes' dimension serves every shard of them.
    const bool is_for_all =
        is_cut && tensor.is_companion && tensor.shape[static_cast<std::size_t>(sharded)] == 1;
    if (is_cut && !is_for_all) {
      placement.kind = Placement::Kind::shard;
      placement.dimension = sharded;
    }
    placements.push_back(placement);
  }
  return placements;
}

std::vector<std::int64_t> pipeline_stages(const std::vector<NativeTensor>& tensors, std::int64_t stages) {
  if (stages == 1) return std::vector<std::int64_t>(tensors.size(), 0);
  std::int64_t layers = 0;
  for (const NativeTensor& tensor : tensors) {
    if (tensor.layer != after_layers) layers = std::max(layers, tensor.layer + 1);
  }
  if (stages < 1 || stages > layers) {
    throw Error(ErrorKind::argument,
                "mesh: pp=" + std::to_string(stages) +
                    " asks for more pipeline stages than the model has layers; expected 1 to " +
                    std::to_string(layers));
  }
  const auto place_of = [&](const NativeTensor& tensor) {
    return static_cast<std::size_t>(std::clamp<std::int64_t>(tensor.layer, 0, layers - 1));
  };
  std::vector<double> bytes(static_cast<std::size_t>(layers), 0.0);
  for (const NativeTensor& tensor : tensors) bytes[place_of(tensor)] += bytes_of_tensor(tensor);
  const std::vector<std::size_t> cuts = even_cuts(bytes, static_cast<std::size_t>(stages));
  std::vector<std::int64_t> stage_of_tensor;
  for (const NativeTensor& tensor : tensors) {
    const auto next = std::upper_bound(cuts.begin(), cuts.end(), place_of(tensor));
    stage_of_tensor.push_back(next - cuts.begin() - 1);
  }
  return stage_of_tensor;
}

TensorsOnMesh::TensorsOnMesh(std::vector<NativeTensor> tensors, std::vector<MeshDimension> mesh,
                             DenseSharding dense)
    : tensors_(std::move(tensors)), mesh_(std::move(mesh)), sizes_(sizes_of(mesh_)), ranks_(ranks_of(mesh_)) {
  for (const MeshDimension& dimension : mesh_) {
    if (dimension.name == "pp") stages_ = dimension.size;
  }
  stage_of_tensor_ = pipeline_stages(tensors_, stages_);
  placements_.reserve(tensors_.size());
  for (const NativeTensor& tensor : tensors_) placements_.push_back(placements_on_mesh(tensor, mesh_, dense));
}

std::int64_t TensorsOnMesh::stage_of_rank(std::int64_t rank) const {
  const Shape coordinate = coordinate_of(mesh_, rank);
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (mesh_[d].name == "pp") return coordinate[d];
  }
  return 0;
}

Shape TensorsOnMesh::shape_of_stage() const {
  Shape shape;
  for (const MeshDimension& dimension : mesh_) {
    if (dimension.name != "pp") shape.push_back(dimension.size);
  }
  return shape;
}

std::vector<Placement> TensorsOnMesh::placements_in_stage(std::size_t tensor) const {
  std::vector<Placement> placements;
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (mesh_[d].name != "pp") placements.push_back(placements_[tensor][d]);
  }
  return placements;
}

std::int64_t TensorsOnMesh::copies(std::size_t tensor) const {
  std::int64_t copies = 1;
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (mesh_[d].name != "pp" && placements_[tensor][d].kind == Placement::Kind::replicate)
      copies *= mesh_[d].size;
  }
  return copies;
}

std::int64_t TensorsOnMesh::copy_of_rank(std::size_t tensor, std::int64_t rank) const {
  const Shape coordinate = coordinate_of(mesh_, rank);
  std::int64_t copy = 0;
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (mesh_[d].name != "pp" && placements_[tensor][d].kind == Placement::Kind::replicate)
      copy = copy * mesh_[d].size + coordinate[d];
  }
  return copy;
}

std::vector<std::size_t> TensorsOnMesh::tensors_of_rank(std::int64_t rank) const {
  const std::int64_t stage = stage_of_rank(rank);
  std::vector<std::size_t> mine;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    if (stage_of_tensor_[t] == stage) mine.push_back(t);
  }
  return mine;
}

std::vector<TensorSpec> TensorsOnMesh::specs_of_rank(std::int64_t rank) const {
  const Shape coordinate = coordinate_of(mesh_, rank);
  std::vector<TensorSpec> specs;
  for (const std::size_t t : tensors_of_rank(rank)) {
    const NativeTensor& tensor = tensors_[t];
    specs.push_back(
        sharded_tensor(tensor.fqn, tensor.dtype, tensor.shape, sizes_, coordinate, placements_[t]));
  }
  return specs;
}

std::vector<TensorSpec> specs_on_mesh(const std::vector<NativeTensor>& tensors,
                                      const std::vector<MeshDimension>& mesh, std::int64_t rank,
                                      DenseSharding dense) {
  return TensorsOnMesh(tensors, mesh, dense).specs_of_rank(rank);
}

}  // namespace shardwright
