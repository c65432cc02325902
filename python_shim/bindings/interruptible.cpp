/// Ctrl-C in what runs without the interpreter, and how far such a piece of work is.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "python_shim/bindings/bindings.h"
#include "storage/progress.h"

namespace py = pybind11;

namespace shardwright {

void check_for_interrupt() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void bind_progress(py::module_& m) {
  py::class_<Progress>(m, "Progress",
                       "How far a piece of work is; it may be looked at while the work goes on.")
      .def(py::init<>())
      .def_property_readonly("done", [](const Progress& progress) { return progress.done.load(); })
      .def_property_readonly("total", [](const Progress& progress) { return progress.total.load(); })
      .def(
          "set",
          [](Progress& progress, std::uint64_t done, std::uint64_t total) {
            progress.done = done;
            progress.total = total;
          },
          py::arg("done"), py::arg("total"));
}

}  // namespace shardwright
