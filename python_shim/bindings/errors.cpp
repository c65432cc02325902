/// Errors of the library as exceptions of Python.

#include <pybind11/pybind11.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "storage/files/secrets.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// Text from the library, which may hold bytes from disk that are no UTF-8.
py::str escaped_text(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "backslashreplace"));
}

void raise_in_python(const Error& error, PyObject* format_error, PyObject* plan_error) {
  const py::str message = escaped_text(without_secrets(error.what()));
  const auto raise_exception = [&](const py::object& exception) {
    py::list partly_written;
    for (const std::string& name : error.partly_written) partly_written.append(escaped_text(name));
    exception.attr("partly_written") = partly_written;
    PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr());
  };
  const auto raise = [&](PyObject* type) {
    raise_exception(py::reinterpret_borrow<py::object>(type)(message));
  };
  const auto raise_system_error = [&](PyObject* type, int number) {  // of which errno may make a subclass
    raise_exception(py::reinterpret_borrow<py::object>(type)(number, message));
  };
  switch (error.kind) {
    case ErrorKind::not_found:
      raise_system_error(PyExc_FileNotFoundError, ENOENT);
      break;
    case ErrorKind::io:
      if (error.system_error == ENOMEM) {
        raise(PyExc_MemoryError);
        break;
      }
      raise_system_error(PyExc_OSError, error.system_error);
      break;
    case ErrorKind::malformed:
      raise(format_error);
      break;
    case ErrorKind::mismatch:
      raise(plan_error);
      break;
    case ErrorKind::argument:
      raise(PyExc_ValueError);
      break;
    case ErrorKind::device:
      raise(PyExc_RuntimeError);
      break;
  }
}

}  // namespace

void bind_errors(py::module_& m) {
  static py::exception<Error> format_error(m, "CheckpointFormatError", PyExc_ValueError);
  static py::exception<Error> plan_error(m, "PlanError", PyExc_ValueError);
  format_error.attr("__doc__") = "What is on disk breaks its format; names the file and the tensor.";
  plan_error.attr("__doc__") =
      "Checkpoint and trainer do not fit together; lists the tensors concerned, with what was expected and "
      "found: the first 20 of them, and how many more there are.";
  m.def(
      "without_secrets", [](const std::string& text) { return py::bytes(without_secrets(text)); },
      py::arg("text"), "See storage/files/secrets.h.");
  py::register_exception_translator([](std::exception_ptr failure) {
    try {
      if (failure) std::rethrow_exception(failure);
    } catch (const Error& error) {
      raise_in_python(error, format_error.ptr(), plan_error.ptr());
    } catch (const std::system_error& error) {  // no thread to be had, or an old file system's fault
      const bool is_of_system = error.code().category() == std::generic_category() ||
                                error.code().category() == std::system_category();
      raise_in_python({ErrorKind::io, error.what(), is_of_system ? error.code().value() : EIO},
                      format_error.ptr(), plan_error.ptr());
    }
  });
}

}  // namespace shardwright
