#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "planner/models/minimax_m3_presets.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// "layers.{3-5}.w" as layers.3.w, layers.4.w, layers.5.w.
inline void unfold(const std::string& name, const Shape& shape, std::map<std::string, Shape>& shapes) {
  const std::size_t open = name.find('{');
  if (open == std::string::npos) {
    shapes[name] = shape;
    return;
  }
  const std::size_t close = name.find('}', open);
  const int last = std::stoi(name.substr(name.find('-', open) + 1));
  for (int i = std::stoi(name.substr(open + 1)); i <= last; ++i)
    unfold(name.substr(0, open) + std::to_string(i) + name.substr(close + 1), shape, shapes);
}

/// The shapes that tests/data/minimax_m3_vl.native.txt or .hf.txt lists, by name.
inline std::map<std::string, Shape> released_shapes(const std::string& file_name) {
  std::ifstream file(std::filesystem::path(__FILE__).parent_path() / "../data" / file_name);
  std::map<std::string, Shape> shapes;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, dtype, sizes;
    words >> name >> dtype >> sizes;
    std::replace(sizes.begin(), sizes.end(), ',', ' ');
    std::istringstream numbers(sizes);
    Shape shape;
    for (std::int64_t size; numbers >> size;) shape.push_back(size);
    unfold(name, shape, shapes);
  }
  return shapes;
}

/// A catalog, without a file behind it, of these tensors.
inline Catalog catalog_of(const std::vector<NamedShape>& tensors) {
  Catalog catalog;
  catalog.directory = "/checkpoint";
  catalog.files = {{"model.safetensors", 0}};
  for (const NamedShape& tensor : tensors) {
    SourceTensor source{tensor.name, tensor.dtype, tensor.shape, Shape(tensor.shape.size(), 0), 0, 0, 0};
    source.begin = catalog.files[0].size;
    source.end = source.begin + static_cast<std::uint64_t>(volume(tensor.shape) * bytes_of(tensor.dtype));
    catalog.files[0].size = source.end;
    catalog.tensors.push_back(std::move(source));
  }
  std::sort(catalog.tensors.begin(), catalog.tensors.end(),
            [](const SourceTensor& a, const SourceTensor& b) { return a.name < b.name; });
  return catalog;
}

inline std::vector<NamedShape> preset_tensors(std::string_view preset) {
  return minimax_m3_checkpoint(*find_minimax_m3_preset(preset));
}

inline Catalog preset_catalog(std::string_view preset) { return catalog_of(preset_tensors(preset)); }

}  // namespace shardwright
