// adapter_model.safetensors: its catalog, other shapes for its tensors, and the header of a new one.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "storage/format/safetensors.h"

namespace py = pybind11;

namespace shardwright {
namespace {

std::shared_ptr<Catalog> read_file_catalog(const std::filesystem::path& path) {
  auto catalog = std::make_shared<Catalog>();
  catalog->directory = path.parent_path();
  catalog->files = {{path.filename().string(), 0}};
  catalog->tensors = read_safetensors_header(path, catalog->files.front().size).tensors;
  std::sort(catalog->tensors.begin(), catalog->tensors.end(),
            [](const SourceTensor& a, const SourceTensor& b) { return a.name < b.name; });
  return catalog;
}

std::int64_t volume_of(const Shape& shape) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

std::shared_ptr<Catalog> with_shapes(const Catalog& catalog, const std::map<std::string, Shape>& shapes) {
  auto seen = std::make_shared<Catalog>(catalog);
  for (SourceTensor& tensor : seen->tensors) {
    const auto found = shapes.find(tensor.name);
    if (found == shapes.end()) continue;
    if (volume_of(found->second) != volume_of(tensor.shape)) {
      throw Error(ErrorKind::argument, tensor.name + ": expected a shape of as many elements as " +
                                           to_string(tensor.shape) + ", found " + to_string(found->second));
    }
    tensor.shape = found->second;
    tensor.offset = Shape(tensor.shape.size());
  }
  return seen;
}

}  // namespace

void bind_adapters(py::module_& m) {
  m.def("read_file_catalog", &read_file_catalog, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
        "The catalog of one safetensors file.");
  m.def("with_shapes", &with_shapes, py::arg("catalog"), py::arg("shapes"),
        "The catalog with the tensors named seen in these shapes, of as many elements, row-major.");
  m.def(
      "safetensors_header",
      [](const std::vector<std::tuple<std::string, std::string, Shape>>& tensors,
         const std::map<std::string, std::string>& metadata) {
        std::vector<SourceTensor> stored;
        for (const auto& [name, dtype, shape] : tensors) {
          const std::optional<DType> known = dtype_named(dtype);
          if (!known) throw Error(ErrorKind::argument, name + ": safetensors has no dtype '" + dtype + "'");
          stored.push_back({name, *known, shape, Shape(shape.size())});
        }
        const std::string header = make_safetensors_header(stored, metadata);
        std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
        for (const SourceTensor& tensor : stored) ranges.emplace_back(tensor.begin, tensor.end);
        return std::pair{py::bytes(header), ranges};
      },
      py::arg("tensors"), py::arg("metadata"),
      "(bytes, [(begin, end)]): how a file of these (name, dtype, shape) begins, and where in it each tensor "
      "lies.");
}

}  // namespace shardwright
