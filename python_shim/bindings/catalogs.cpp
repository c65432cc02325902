/// Catalogs, and what can be told of a checkpoint by its catalog alone.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels/decode.h"
#include "planner/error.h"
#include "planner/models/stored_encodings.h"
#include "planner/names/encodings.h"
#include "planner/names/packed_weights.h"
#include "planner/names/quantization_config.h"
#include "python_shim/bindings/bindings.h"
#include "storage/files/remote_calls.h"
#include "storage/format/read_catalog.h"

namespace py = pybind11;

namespace shardwright {
namespace {

bool by_name_and_offset(const SourceTensor& a, const SourceTensor& b) {
  return std::tie(a.name, a.offset) < std::tie(b.name, b.offset);
}

}  // namespace

DType dtype_from(const std::string& name) {
  const std::optional<DType> dtype = dtype_named(name);
  if (!dtype) throw Error(ErrorKind::argument, "dtype '" + name + "' is not one that safetensors has");
  return *dtype;
}

namespace {

void bind_catalog_types(py::module_& m) {
  py::class_<SourceTensor>(m, "SourceTensor", "One tensor of a checkpoint, or one chunk of a larger one.")
      .def_readonly("name", &SourceTensor::name)
      .def_property_readonly("dtype", [](const SourceTensor& t) { return std::string(name_of(t.dtype)); })
      .def_readonly("shape", &SourceTensor::shape)
      .def_readonly("offset", &SourceTensor::offset)
      .def_readonly("file", &SourceTensor::file)
      .def_readonly("begin", &SourceTensor::begin)
      .def_readonly("end", &SourceTensor::end);
  py::class_<SourceFile>(m, "SourceFile")
      .def_property_readonly("name",
                             [](const SourceFile& file) {  // as Python spells file names that are no UTF-8
                               return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefaultAndSize(
                                   file.name.data(), static_cast<Py_ssize_t>(file.name.size())));
                             })
      .def_readonly("size", &SourceFile::size)
      .def_readonly("version", &SourceFile::version, "Of an object at an address; empty for a file.");
  py::class_<Catalog, std::shared_ptr<Catalog>>(m, "Catalog", "What a checkpoint directory holds.")
      .def_property_readonly(
          "directory",
          [](const Catalog& catalog) -> py::object {
            if (is_remote(catalog.directory)) return py::str(catalog.directory.native());
            return py::cast(catalog.directory);
          },
          "A pathlib.Path, or an address as a text: pathlib would take its two slashes for one.")
      .def_readonly("files", &Catalog::files)
      .def_readonly("tensors", &Catalog::tensors)
      .def_readonly("config", &Catalog::config, "Text of config.json; empty where there is none.")
      .def_property_readonly(
          "whole_tensors",
          [](const Catalog& catalog) {
            py::list tensors;
            for (std::size_t first = 0; first < catalog.tensors.size();) {
              const std::span<const SourceTensor> chunks = catalog.find(catalog.tensors[first].name);
              tensors.append(py::make_tuple(chunks.front().name, name_of(chunks.front().dtype),
                                            Catalog::global_shape(chunks)));
              first += chunks.size();
            }
            return tensors;
          },
          "(name, dtype, shape) of the tensors that the chunks make up.")
      .def(
          "chunks",
          [](const Catalog& catalog, const std::string& name) {
            py::list chunks;
            for (const SourceTensor& chunk : catalog.find(name))
              chunks.append(py::make_tuple(chunk.offset, chunk.shape));
            return chunks;
          },
          py::arg("name"), "(offset, shape) of the chunks of a tensor.")
      .def(
          "as_stored",
          [](const std::shared_ptr<Catalog>& catalog) {
            return is_as_stored(*catalog) ? catalog : std::make_shared<Catalog>(as_stored(*catalog));
          },
          "The same with the names, dtypes and shapes that the files have, packed weights and all.");
}

void bind_makers_of_catalogs(py::module_& m) {
  m.def(
      "catalog_of_tensors",
      [](const std::vector<std::tuple<std::string, std::string, Shape, Shape>>& tensors, std::string config) {
        auto catalog = std::make_shared<Catalog>();
        catalog->directory = "(tensors in memory)";
        catalog->files = {{"memory", 0}};
        for (const auto& [name, dtype, shape, offset] : tensors) {
          catalog->tensors.push_back({name, dtype_from(dtype), shape, offset, 0, 0, 0});
        }
        if (!std::is_sorted(catalog->tensors.begin(), catalog->tensors.end(), by_name_and_offset)) {
          throw Error(ErrorKind::argument,
                      "catalog_of_tensors: expected the tensors sorted by name, then by offset");
        }
        see_packed_weights(*catalog);
        catalog->config = std::move(config);
        catalog->fault_of_config = fault_of_quantization_config(*catalog);
        return catalog;
      },
      py::arg("tensors"), py::arg("config") = "",
      "A catalog of tensors in memory, from (name, dtype, shape, offset), sorted. Packed weights are seen as "
      "in "
      "files.");
  m.def(
      "catalog_of_chunks",
      [](const std::filesystem::path& directory,
         const std::vector<std::pair<std::string, std::uint64_t>>& files,
         const std::vector<std::tuple<std::string, std::string, Shape, Shape, std::uint32_t, std::uint64_t>>&
             chunks) {
        auto catalog = std::make_shared<Catalog>();
        catalog->directory = directory;
        for (const auto& [name, size] : files) catalog->files.push_back({name, size});
        for (const auto& [name, dtype_name, shape, offset, file, begin] : chunks) {
          const DType dtype = dtype_from(dtype_name);
          const std::uint64_t size = static_cast<std::uint64_t>(volume(shape) * bytes_of(dtype));
          if (begin > files.at(file).second || size > files.at(file).second - begin)
            throw Error(ErrorKind::malformed, files.at(file).first + ": " + name + ": expected " +
                                                  std::to_string(size) + " bytes at byte " +
                                                  std::to_string(begin) + ", found a file of " +
                                                  std::to_string(files.at(file).second) + "; copy it again");
          catalog->tensors.push_back({name, dtype, shape, offset, file, begin, begin + size});
        }
        std::sort(catalog->tensors.begin(), catalog->tensors.end(), by_name_and_offset);
        return catalog;
      },
      py::arg("directory"), py::arg("files"), py::arg("chunks"), py::call_guard<py::gil_scoped_release>(),
      "A catalog of what lies row by row in files: (name, bytes), sorted, and of each chunk (name, dtype, "
      "shape, offset, file, first byte).");
  m.def(
      "read_catalog",
      [](const std::filesystem::path& directory, int threads) {
        return std::make_shared<Catalog>(read_catalog(directory, threads));
      },
      py::arg("directory"), py::arg("threads") = 0, py::call_guard<py::gil_scoped_release>());
}

void bind_stored_encodings(py::module_& m) {
  m.def(
      "encodings",
      [] {
        std::vector<std::string_view> names;
        for (const KnownEncoding& blocks : known_encodings()) names.push_back(blocks.name);
        return names;
      },
      "The names of the encodings that are known.");
  m.def(
      "generated_encodings",
      [] {
        std::vector<std::string_view> names;
        for (const StoredEncoding& encoding : stored_encodings()) names.push_back(encoding.name);
        return names;
      },
      "The names of those that generate() makes.");
  m.def(
      "can_convert",
      [](const std::string& source, const std::string& destination) {
        return can_convert(dtype_from(source), dtype_from(destination));
      },
      py::arg("source"), py::arg("destination"),
      "Whether the kernels turn elements of one dtype into another.");
  m.def(
      "stored_alike",
      [](const Catalog& catalog) {
        py::dict stored;
        for (const auto& [name, alike] : stored_alike(catalog))
          stored[py::str(name)] = py::make_tuple(alike.weights, alike.parameters, alike.bytes);
        return stored;
      },
      py::arg("catalog"),
      "{encoding, or dtype without scales: (weights, parameters, bytes with their companions)}.");
  m.def("scaled_weights", &scaled_weights, py::arg("catalog"),
        "How many weights have scales, by encoding; those whose scales fit none that is known under "
        "\"unknown\".");
}

}  // namespace

void bind_catalog(py::module_& m) {
  bind_catalog_types(m);
  bind_makers_of_catalogs(m);
  bind_stored_encodings(m);
}

}  // namespace shardwright
