#include "planner/names/catalog.h"

#include <algorithm>

namespace shardwright {

namespace {

bool is_behind(std::string_view name, const SourceTensor& tensor) { return name < tensor.name; }
bool is_before(const SourceTensor& tensor, std::string_view name) { return tensor.name < name; }

}  // namespace

std::span<const SourceTensor> Catalog::find(std::string_view name) const {
  const auto first = std::lower_bound(tensors.begin(), tensors.end(), name, is_before);
  const auto is_of_it = [&](auto tensor) { return tensor != tensors.end() && tensor->name == name; };
  if (!is_of_it(first)) return {first, first};
  if (!is_of_it(first + 1)) return {first, first + 1};  // as most are, without a second search
  return {first, std::upper_bound(first, tensors.end(), name, is_behind)};
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
