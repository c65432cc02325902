/// A rank's tensors as the package describes them, and where placements put their shards.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"
#include "python_shim/bindings/bindings.h"
#include "storage/device/device_calls.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// A device as torch names it: "cpu", "meta", "cuda:1". Without kernels for GPUs these are as any other
/// device.
void set_device(TensorSpec& spec, const std::string& name) {
  spec.device_name = name;
  spec.device = DeviceKind::other;
  if (name == "cpu") spec.device = DeviceKind::cpu;
  if (name == "meta") spec.device = DeviceKind::meta;
  if (name.starts_with("cuda:") && cuda_calls() != nullptr) {
    spec.device = DeviceKind::cuda;
    spec.device_index = std::stoi(name.substr(5));
  }
}

}  // namespace

void bind_specs(py::module_& m) {
  py::class_<Placement>(m, "Placement")
      .def_static("replicate", [] { return Placement{}; })
      .def_static("shard",
                  [](int dimension) {
                    return Placement{Placement::Kind::shard, dimension, 1};
                  })
      .def_static("strided_shard",
                  [](int dimension, std::int64_t split_factor) {
                    return Placement{Placement::Kind::strided_shard, dimension, split_factor};
                  })
      .def_property_readonly("is_shard", [](const Placement& p) { return p.kind == Placement::Kind::shard; })
      .def_readonly("dimension", &Placement::dimension)
      .def("__repr__", [](const Placement& p) {
        switch (p.kind) {
          case Placement::Kind::replicate:
            return std::string("Replicate()");
          case Placement::Kind::shard:
            return "Shard(" + std::to_string(p.dimension) + ")";
          default:
            return "StridedShard(" + std::to_string(p.dimension) + ", " + std::to_string(p.split_factor) +
                   ")";
        }
      });
  py::class_<LocalBox>(m, "LocalBox")
      .def(py::init([](Shape offset, Shape size, Shape local_offset) {
             return LocalBox{{std::move(offset), std::move(size)}, std::move(local_offset)};
           }),
           py::arg("offset"), py::arg("size"), py::arg("local_offset"))
      .def_property_readonly("offset", [](const LocalBox& box) { return box.global.offset; })
      .def_property_readonly("size", [](const LocalBox& box) { return box.global.size; })
      .def_readonly("local_offset", &LocalBox::local_offset);
  py::class_<TensorSpec>(m, "TensorSpec", "A tensor of the trainer as one rank sees it.")
      .def(py::init([](std::string fqn, const std::string& dtype, Shape global_shape, Shape local_shape,
                       Shape local_strides, std::uintptr_t data, const std::string& device,
                       std::vector<LocalBox> boxes) {
             TensorSpec spec;
             spec.fqn = std::move(fqn);
             spec.dtype = dtype_from(dtype);
             spec.global_shape = std::move(global_shape);
             spec.local_shape = std::move(local_shape);
             spec.local_strides = std::move(local_strides);
             spec.data =
                 reinterpret_cast<void*>(data);  // NOLINT(performance-no-int-to-ptr): an address from torch
             set_device(spec, device);
             spec.boxes = std::move(boxes);
             return spec;
           }),
           py::arg("fqn"), py::arg("dtype"), py::arg("global_shape"), py::arg("local_shape"),
           py::arg("local_strides"), py::arg("data"), py::arg("device"), py::arg("boxes"))
      .def_readonly("fqn", &TensorSpec::fqn)
      .def_property_readonly("dtype", [](const TensorSpec& spec) { return std::string(name_of(spec.dtype)); })
      .def_readonly("global_shape", &TensorSpec::global_shape)
      .def_readonly("local_shape", &TensorSpec::local_shape)
      .def_property_readonly(
          "local_bytes",
          [](const TensorSpec& spec) { return volume(spec.local_shape) * bits_of(spec.dtype) / 8; },
          "That this rank holds of it.")
      .def_readonly("boxes", &TensorSpec::boxes);
  m.def("local_boxes", &local_boxes, py::arg("global_shape"), py::arg("mesh_shape"), py::arg("coordinate"),
        py::arg("placements"));
  m.def("local_shape", &local_shape, py::arg("global_shape"), py::arg("mesh_shape"), py::arg("coordinate"),
        py::arg("placements"));
}

}  // namespace shardwright
