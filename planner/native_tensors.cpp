#include "planner/native_tensors.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <map>
#include <optional>

#include "planner/block_scales.h"
#include "planner/error.h"

namespace shardwright {

std::vector<NativeTensor> native_tensors(const Catalog& catalog, const WeightMap& map, DType dtype) {
  struct Found {
    const Rule* rule;
    Shape hf_shape;
    DType dtype;
    std::int64_t experts;
  };
  std::map<std::string, Found> found;
  std::string_view previous;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (tensor.name == previous || is_scale_name(tensor.name) || is_ignored(map, tensor.name)) continue;
    previous = tensor.name;
    const std::optional<NativePlace> place = native_place_of(map, tensor.name);
    if (!place || !place->rule->known) continue;
    if (place->captures.expert >= std::ssize(catalog.tensors)) {
      throw Error(ErrorKind::malformed, catalog.files[tensor.file].name + ": tensor " + tensor.name +
                                            " is of expert " + std::to_string(place->captures.expert) +
                                            ", but the checkpoint holds only " +
                                            std::to_string(catalog.tensors.size()) + " tensors in all");
    }
    const std::span<const SourceTensor> chunks = catalog.find(tensor.name);
    if (place->rule->is_matrix() && tensor.shape.size() != 2) {
      throw Error(ErrorKind::malformed, catalog.files[tensor.file].name + ": tensor " + tensor.name +
                                            " has shape " + to_string(tensor.shape) + ", expected a matrix");
    }
    const bool scaled = !scales_of(catalog, tensor.name).empty();
    const auto [entry, is_new] =
        found.try_emplace(place->fqn, Found{place->rule, Catalog::global_shape(chunks),
                                            scaled ? dtype : tensor.dtype, place->captures.expert + 1});
    entry->second.experts = std::max(entry->second.experts, place->captures.expert + 1);
  }
  std::vector<NativeTensor> tensors;
  for (const auto& [fqn, entry] : found) {
    tensors.push_back({fqn, entry.dtype, native_shape_of(*entry.rule, entry.hf_shape, entry.experts),
                       entry.rule->stacked()});
  }
  return tensors;
}

std::vector<MeshDimension> parse_mesh(const std::string& text) {
  static const std::vector<std::string> names{"ep", "ep_shard", "ep_replicate", "fsdp", "shard", "replicate"};
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
        __builtin_mul_overflow(ranks, dimension.size, &ranks) ||
        std::find(names.begin(), names.end(), dimension.name) == names.end()) {
      throw Error(ErrorKind::argument,
                  "mesh '" + text + "': expected NAME=SIZE,... with the names ep, ep_shard, " +
                      "ep_replicate, fsdp, shard, replicate and sizes of 1 or more, found '" + part + "'");
    }
    mesh.push_back(std::move(dimension));
    begin = end + 1;
  }
  return mesh;
}

std::vector<Placement> placements_on_mesh(const NativeTensor& tensor,
                                          const std::vector<MeshDimension>& mesh) {
  std::vector<Placement> placements;
  for (const MeshDimension& dimension : mesh) {
    Placement placement;
    const int sharded = dimension.name == "ep_shard" ? 1 : 0;
    const bool speaks_of_it =
        dimension.name == "shard" ||
        (tensor.stacked ? dimension.name == "ep" || dimension.name == "ep_shard" : dimension.name == "fsdp");
    if (speaks_of_it && static_cast<std::size_t>(sharded) < tensor.shape.size()) {
      placement.kind = Placement::Kind::shard;
      placement.dimension = sharded;
    }
    placements.push_back(placement);
  }
  return placements;
}

std::vector<TensorSpec> specs_on_mesh(const std::vector<NativeTensor>& tensors,
                                      const std::vector<MeshDimension>& mesh, std::int64_t rank) {
  Shape sizes;
  for (const MeshDimension& dimension : mesh) sizes.push_back(dimension.size);
  if (rank < 0 || rank >= volume(sizes)) {
    throw Error(ErrorKind::argument, "rank " + std::to_string(rank) + " is not on a mesh of " +
                                         std::to_string(volume(sizes)) + " ranks");
  }
  Shape coordinate(sizes.size());
  for (std::size_t d = sizes.size(); d-- > 0;) {
    coordinate[d] = rank % sizes[d];
    rank /= sizes[d];
  }
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const NativeTensor& tensor : tensors) {
    specs.push_back(sharded_tensor(tensor.fqn, tensor.dtype, tensor.shape, sizes, coordinate,
                                   placements_on_mesh(tensor, mesh)));
  }
  return specs;
}

}  // namespace shardwright
