/// The Python module shardwright._core: the planner and the storage layer as they are, plain data in and out.
/// It knows no torch: tensors arrive as TensorSpecs that the package describes.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <string>

#include "planner/names/name_hints.h"
#include "planner/problems.h"
#include "python_shim/bindings/bindings.h"
#include "storage/files/pending_file.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "Shardwright's planner and storage layer. Use the package `shardwright`, which describes tensors to "
      "it.";
  m.attr("__version__") = SHARDWRIGHT_VERSION;
  shardwright::bind_errors(m);
  shardwright::bind_progress(m);
  shardwright::bind_catalog(m);
  shardwright::bind_specs(m);
  shardwright::bind_weight_map(m);
  shardwright::bind_load(m);
  shardwright::bind_devices(m);
  shardwright::bind_remote(m);
  shardwright::bind_loads(m);
  shardwright::bind_state_dicts(m);
  shardwright::bind_imported_rules(m);
  shardwright::bind_save_plans(m);
  shardwright::bind_write_results(m);
  shardwright::bind_saves(m);
  shardwright::bind_adapters(m);
  shardwright::bind_exports(m);
  shardwright::bind_handover(m);
  shardwright::bind_refits(m);
  shardwright::bind_generate(m);
  shardwright::bind_simulate(m);
  m.def(
      "write_named_file",
      [](const std::filesystem::path& path, const std::string& bytes) {
        const py::gil_scoped_release release;
        shardwright::write_named_file(path, bytes, shardwright::check_for_interrupt);
      },
      py::arg("path"), py::arg("bytes"),
      "Writes a file that somebody has named: whole or not at all; into what is there if that is no regular "
      "file.");
  m.def("is_written_into", &shardwright::is_written_into, py::arg("path"),
        "Whether a file of this name would be written into, as /dev/null is, and not made or replaced.");
  m.def("hints_at_names", &shardwright::hints_at_names, py::arg("missing"), py::arg("available"),
        "See planner/names/name_hints.h.");
  m.def("in_lines", &shardwright::in_lines, py::arg("headline"), py::arg("lines"),
        "The headline, and below it the first 20 of the lines; \"and 7 more\" for the rest.");
  m.def("grouped_names", &shardwright::grouped_names, py::arg("names"),
        "One line for each group of names that differ in one number, the numbers as ranges.");
}
