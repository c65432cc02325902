/// Checkpoints made up for tests and measurements.

#include "storage/tools/generate.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstdint>
#include <memory>
#include <string>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "python_shim/bindings/interruptible.h"

namespace py = pybind11;

namespace shardwright {

void bind_generate(py::module_& m) {
  py::class_<GenerateReport>(m, "GenerateReport")
      .def_readonly("tensors", &GenerateReport::tensors)
      .def_readonly("files", &GenerateReport::files)
      .def_readonly("bytes", &GenerateReport::bytes);
  m.def(
      "generate",
      [](const std::filesystem::path& directory, const std::string& preset, const std::string& encoding,
         bool layout_only, std::uint64_t seed, int threads, int layers, const std::string& family,
         const std::string& form, const std::string& config, std::uint64_t max_file_bytes,
         const std::string& values, Progress* watched) {
        if (values != "trained" && values != "any")
          throw Error(ErrorKind::argument, "values '" + values + "': expected trained or any");
        return interruptible(watched, [&](Progress& progress) {
          return generate(directory, {preset, encoding, layout_only, values == "any", seed, threads, layers,
                                      family, form, config, max_file_bytes, &progress});
        });
      },
      py::arg("directory"), py::arg("preset") = "", py::arg("encoding") = "", py::arg("layout_only") = false,
      py::arg("seed") = 0, py::arg("threads") = 0, py::arg("layers") = 0, py::arg("family") = "",
      py::arg("form") = "", py::arg("config") = "", py::arg("max_file_bytes") = 0,
      py::arg("values") = "trained", py::arg("progress") = nullptr, py::call_guard<py::gil_scoped_release>());
  m.def(
      "generated_catalog",
      [](const std::string& preset, int layers, const std::string& family, const std::string& form,
         const std::string& config, const std::string& encoding) {
        GenerateOptions options;
        options.encoding = encoding;
        options.preset = preset;
        options.layers = layers;
        options.family = family;
        options.form = form;
        options.config = config;
        return std::make_shared<Catalog>(generated_catalog(options));
      },
      py::arg("preset") = "", py::arg("layers") = 0, py::arg("family") = "", py::arg("form") = "",
      py::arg("config") = "", py::arg("encoding") = "",
      "The catalog of what `generate` would write, without writing it.");
  m.def("sample_forms", &sample_forms, py::arg("family"),
        "The forms in which a family is released, as `generate` takes them, the usual one first.");
}

}  // namespace shardwright
