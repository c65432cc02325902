/// Handing tensors over without files: storage/handover/.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "storage/handover/piece_source.h"

namespace py = pybind11;

namespace shardwright {

void bind_handover(py::module_& m) {
  py::class_<EncodedPiece>(m, "EncodedPiece", "See storage/handover/pieces.h.")
      .def_readonly("name", &EncodedPiece::name)
      .def_readonly("layer", &EncodedPiece::layer)
      .def_property_readonly("dtype",
                             [](const EncodedPiece& piece) { return std::string(name_of(piece.dtype)); })
      .def_readonly("shape", &EncodedPiece::shape)
      .def_property_readonly("unit",
                             [](const EncodedPiece& piece) { return std::string(name_of(piece.unit)); })
      .def_readonly("view", &EncodedPiece::view)
      .def_property_readonly("box_offset", [](const EncodedPiece& piece) { return piece.box.offset; })
      .def_property_readonly("box_size", [](const EncodedPiece& piece) { return piece.box.size; })
      .def_readonly("offset", &EncodedPiece::offset)
      .def_readonly("bytes", &EncodedPiece::bytes);
  py::class_<Pieces>(m, "Pieces", "Keeps its request alive, not the memory of the specs.")
      .def(py::init([](const std::string& share, const std::vector<TensorSpec>& specs,
                       const std::string& state, const ExportRequest& request, std::size_t bucket_bytes,
                       int threads, std::size_t staging_bytes, const DeviceOptions& devices) {
             const py::gil_scoped_release released;
             return Pieces(piece_source(share, specs, decode_state(state), request, bucket_bytes,
                                        {threads, staging_bytes, devices, nullptr}));
           }),
           py::arg("share"), py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("bucket_bytes"),
           py::arg("threads"), py::arg("staging_bytes"), py::arg("devices"), py::keep_alive<1, 5>())
      .def_property_readonly("bucket_bytes", &Pieces::bucket_bytes)
      .def_property_readonly("bytes", &Pieces::bytes)
      .def_property_readonly("peak_staging_bytes", &Pieces::peak_staging_bytes)
      .def(
          "next",
          [](Pieces& pieces, std::uintptr_t memory) {
            return pieces.next(reinterpret_cast<std::byte*>(memory));  // NOLINT: an address from torch
          },
          py::arg("memory"), py::call_guard<py::gil_scoped_release>(),
          "Encodes the next bucket into memory at that address.");
}

}  // namespace shardwright
