#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "python_shim/bindings/interruptible.h"
#include "storage/tools/simulate.h"
#include "storage/tools/simulation_facts.h"

namespace py = pybind11;

namespace shardwright {

void bind_simulate(py::module_& m) {
  py::class_<SimulatedRates>(m, "SimulatedRates", "Bytes a second, seconds and numbers that machines reach.")
      .def(py::init([](double storage, double node_reading, double node_memory, double connection,
                       double decoding, double request_wait, double requests_in_flight, double exchange_wait,
                       double exchange_bytes) {
             return SimulatedRates{storage,      node_reading,       node_memory,   connection,    decoding,
                                   request_wait, requests_in_flight, exchange_wait, exchange_bytes};
           }),
           py::kw_only(), py::arg("storage"), py::arg("node_reading"), py::arg("node_memory"),
           py::arg("connection"), py::arg("decoding"), py::arg("request_wait"), py::arg("requests_in_flight"),
           py::arg("exchange_wait"), py::arg("exchange_bytes"));
  m.def(
      "simulate",
      [](const Catalog& catalog, const WeightMap& map, const std::vector<MeshDimension>& mesh,
         const SimulatedRates& rates, const std::string& dense, std::int64_t ranks_per_node,
         std::int64_t sample, int threads, bool strict, Progress* watched) {
        const DenseSharding sharding = dense_sharding_named(dense);
        SimulateOptions options;
        options.ranks_per_node = ranks_per_node;
        options.sample = sample;
        options.threads = threads;
        options.plan.strict = strict;
        const py::gil_scoped_release release;
        const TensorsOnMesh tensors(native_tensors(catalog, map), mesh, sharding);
        return interruptible(watched, [&](Progress& progress) {
          options.progress = &progress;
          return simulation_facts(simulate(tensors, catalog, map, options), catalog, rates);
        });
      },
      py::arg("catalog"), py::arg("map"), py::arg("mesh"), py::arg("rates"), py::arg("dense") = "auto",
      py::arg("ranks_per_node") = 8, py::arg("sample") = 0, py::arg("threads") = 0, py::arg("strict") = true,
      py::arg("progress") = nullptr,
      "Plans a load on every rank of a mesh, or on whole nodes with about `sample` of them; what was "
      "counted, "
      "as JSON.");
}

}  // namespace shardwright
