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
      .def_readonly("place", &EncodedPiece::place)
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
  py::class_<PieceSums>(
      m, "PieceSums",
      "Checksums of what a rank has handed over, for the next time to hand over what has "
      "changed.\n\nOne for each rank and receiver; `pieces(changed_since=)` compares with it, "
      "and renews it when its last piece has been asked for.")
      .def(py::init([](std::uint64_t block_bytes) {
             if (block_bytes < 32) {
               throw py::value_error("block_bytes is " + std::to_string(block_bytes) +
                                     "; expected 32 or more");
             }
             PieceSums sums;
             sums.block_bytes = block_bytes;
             return sums;
           }),
           py::arg("block_bytes") = PieceSums().block_bytes)
      .def("forget", &PieceSums::forget,
           "Makes the next time hand over everything, as to a receiver that has been started anew.")
      .def_property_readonly("blocks", [](const PieceSums& sums) { return sums.sums.size(); });
  py::class_<HandedTensor>(m, "HandedTensor", "See storage/handover/pieces.h.")
      .def_readonly("name", &HandedTensor::name)
      .def_property_readonly("dtype",
                             [](const HandedTensor& tensor) { return std::string(name_of(tensor.dtype)); })
      .def_readonly("shape", &HandedTensor::shape)
      .def_readonly("layer", &HandedTensor::layer)
      .def_readonly("weight", &HandedTensor::weight);
  py::class_<Pieces>(m, "Pieces", "Keeps its request alive, not the memory of the specs.")
      .def(py::init([](const std::string& share, const std::vector<TensorSpec>& specs,
                       const std::string& state, const ExportRequest& request, std::size_t bucket_bytes,
                       PieceSums* changed_since, int threads, std::size_t staging_bytes,
                       const DeviceOptions& devices) {
             const py::gil_scoped_release released;
             return Pieces(piece_source(share, specs, decode_state(state), request, bucket_bytes,
                                        changed_since, {threads, staging_bytes, devices, nullptr}));
           }),
           py::arg("share"), py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("bucket_bytes"),
           py::arg("changed_since"), py::arg("threads"), py::arg("staging_bytes"), py::arg("devices"),
           py::keep_alive<1, 5>(), py::keep_alive<1, 7>())
      .def_property_readonly("bucket_bytes", &Pieces::bucket_bytes)
      .def_property_readonly("bytes", &Pieces::bytes)
      .def_property_readonly("peak_staging_bytes", &Pieces::peak_staging_bytes)
      .def("tensors", &Pieces::tensors)
      .def("keep_sums", &Pieces::keep_sums)
      .def(
          "next",
          [](Pieces& pieces, std::uintptr_t memory) {
            return pieces.next(reinterpret_cast<std::byte*>(memory));  // NOLINT(performance-no-int-to-ptr)
          },
          py::arg("memory"), py::call_guard<py::gil_scoped_release>(),
          "Encodes the next bucket into memory at that address.");
}

}  // namespace shardwright
