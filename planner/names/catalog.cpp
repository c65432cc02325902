#include "planner/names/catalog.h"

#include <algorithm>

namespace shardwright {

namespace {

struct ByName {
  bool operator()(const SourceTensor& tensor, std::string_view name) const { return tensor.name < name; }
  bool operator()(std::string_view name, const SourceTensor& tensor) const { return name < tensor.name; }
};

}  // namespace

std::span<const SourceTensor> Catalog::find(std::string_view name) const {
  const auto [first, last] = std::equal_range(tensors.begin(), tensors.end(), name, ByName{});
  return {first, last};
}

std::optional<Shape> Catalog::shape_of(std::string_view name) const {
  const std::span<const SourceTensor> chunks = find(name);
  return chunks.empty() ? std::nullopt : std::optional(global_shape(chunks));
}

Shape Catalog::global_shape(std::span<const SourceTensor> chunks) {
  if (chunks.empty()) return {};
  Shape shape = chunks.front().shape;
  for (const SourceTensor& chunk : chunks) {
    for (std::size_t d = 0; d < shape.size(); ++d)
      shape[d] = std::max(shape[d], chunk.offset[d] + chunk.shape[d]);
  }
  return shape;
}

std::filesystem::path Catalog::path_of(const SourceTensor& tensor) const {
  return directory / files[tensor.file].name;
}

}  // namespace shardwright
