// CUDA devices: whether this build reaches them, and how.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "python_shim/bindings/bindings.h"
#include "storage/device/device_calls.h"
#include "storage/device/device_options.h"

namespace py = pybind11;

namespace shardwright {

std::map<int, void*> streams_from(const std::map<int, std::uintptr_t>& addresses) {
  std::map<int, DeviceStream> streams;
  for (const auto& [device, stream] : addresses) {
    streams[device] =
        reinterpret_cast<DeviceStream>(stream);  // NOLINT(performance-no-int-to-ptr): from torch
  }
  return streams;
}

void bind_devices(py::module_& m) {
  m.def(
      "has_cuda", [] { return cuda_calls() != nullptr; }, "Whether this build has kernels for GPUs.");
  py::class_<DeviceOptions>(m, "DeviceOptions", "How tensors on CUDA devices are read.")
      .def(py::init([](std::optional<std::size_t> memory, const std::map<int, std::uintptr_t>& streams) {
             DeviceOptions options;
             if (memory) options.memory = *memory;
             options.streams = streams_from(streams);
             return options;
           }),
           py::arg("memory") = py::none(), py::arg("streams") = std::map<int, std::uintptr_t>{},
           "After the work of these streams: for each device a cudaStream_t.");
}

}  // namespace shardwright
