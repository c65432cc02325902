// Parts of files that Python sends elsewhere.

#include "python_shim/bindings/sending.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace py = pybind11;

namespace shardwright {
namespace {

/// Bytes that live as long as anybody in Python looks at them.
struct SentBytes {
  std::unique_ptr<std::byte[]> bytes;
  std::uint64_t size = 0;
};

}  // namespace

void bind_sending(py::module_& m) {
  py::class_<SentBytes>(m, "SentBytes", py::buffer_protocol(), "A part of a file; a buffer of bytes.")
      .def("__len__", [](const SentBytes& part) { return part.size; })
      .def_buffer([](SentBytes& part) {
        static std::byte none{};
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(part.bytes ? part.bytes.get() : &none),
                               static_cast<py::ssize_t>(part.size), true);
      });
}

SendPart send_by(const py::object& function) {
  if (function.is_none()) return nullptr;
  const std::shared_ptr<py::object> kept(new py::object(function), [](py::object* held) {
    const py::gil_scoped_acquire acquired;
    delete held;
  });
  return [kept](const std::string& name, std::uint64_t file_bytes, FilePart part) {
    const py::gil_scoped_acquire acquired;
    auto sent = std::make_unique<SentBytes>(SentBytes{std::move(part.bytes), part.size});
    (*kept)(name, file_bytes, part.begin, py::cast(std::move(sent)));
  };
}

}  // namespace shardwright
