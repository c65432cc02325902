#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "python_shim/bindings/interruptible.h"
#include "storage/tools/simulate.h"
#include "storage/tools/simulated_ways.h"

namespace py = pybind11;

namespace shardwright {
namespace {

void bind_figures(py::module_& m) {
  py::class_<SimulatedRank>(m, "SimulatedRank")
      .def_readonly("rank", &SimulatedRank::rank)
      .def_readonly("stage", &SimulatedRank::stage)
      .def_readonly("planning_seconds", &SimulatedRank::planning_seconds)
      .def_readonly("tensors", &SimulatedRank::tensors)
      .def_readonly("bytes_needed", &SimulatedRank::bytes_needed)
      .def_readonly("bytes_read", &SimulatedRank::bytes_read)
      .def_readonly("requests", &SimulatedRank::requests)
      .def_readonly("extents", &SimulatedRank::extents)
      .def_readonly("bytes_held", &SimulatedRank::bytes_held)
      .def_readonly("bytes_saved", &SimulatedRank::bytes_saved)
      .def_readonly("bytes_exported", &SimulatedRank::bytes_exported)
      .def_property_readonly(
          "files",
          [](const SimulatedRank& rank) {
            std::vector<std::pair<std::uint32_t, std::uint64_t>> files;
            for (const FileShare& share : rank.files) files.emplace_back(share.file, share.bytes);
            return files;
          },
          "[(index into Catalog.files, bytes read)]");
  py::class_<SimulatedNode>(m, "SimulatedNode")
      .def_readonly("node", &SimulatedNode::node)
      .def_readonly("bytes_needed", &SimulatedNode::bytes_needed)
      .def_readonly("bytes_read", &SimulatedNode::bytes_read)
      .def_readonly("requests", &SimulatedNode::requests)
      .def_readonly("bytes_distinct", &SimulatedNode::bytes_distinct)
      .def_readonly("bytes_read_together", &SimulatedNode::bytes_read_together)
      .def_readonly("requests_together", &SimulatedNode::requests_together);
  py::class_<SimulatedSave>(m, "SimulatedSave")
      .def_readonly("bytes_exchanged", &SimulatedSave::bytes_exchanged)
      .def_readonly("bytes_unchanged", &SimulatedSave::bytes_unchanged)
      .def_readonly("most_bytes_of_rank", &SimulatedSave::most_bytes_of_rank)
      .def_readonly("seconds", &SimulatedSave::seconds)
      .def_readonly("seconds_unchanged", &SimulatedSave::seconds_unchanged)
      .def_readonly("chunks", &SimulatedSave::chunks)
      .def_readonly("bytes_metadata", &SimulatedSave::bytes_metadata);
  py::class_<Simulation>(m, "Simulation")
      .def_readonly("world", &Simulation::world)
      .def_readonly("stages", &Simulation::stages)
      .def_readonly("ranks", &Simulation::ranks)
      .def_readonly("nodes", &Simulation::nodes)
      .def_readonly("native_tensors", &Simulation::native_tensors)
      .def_readonly("bytes_native", &Simulation::bytes_native)
      .def_readonly("bytes_checkpoint", &Simulation::bytes_checkpoint)
      .def_readonly("bytes_distinct", &Simulation::bytes_distinct)
      .def_readonly("bytes_needed_by_job", &Simulation::bytes_needed_by_job)
      .def_readonly("save", &Simulation::save, "None on a mesh too large to plan a save of all its ranks.")
      .def_readonly("seconds", &Simulation::seconds);
  py::class_<SimulatedWay>(m, "SimulatedWay")
      .def_readonly("bytes_from_storage", &SimulatedWay::bytes_from_storage)
      .def_readonly("bytes_in_nodes", &SimulatedWay::bytes_in_nodes)
      .def_readonly("bytes_on_wire", &SimulatedWay::bytes_on_wire)
      .def_readonly("requests", &SimulatedWay::requests)
      .def_readonly("planning", &SimulatedWay::planning)
      .def_readonly("waiting", &SimulatedWay::waiting)
      .def_readonly("reading", &SimulatedWay::reading)
      .def_readonly("on_wire", &SimulatedWay::on_wire)
      .def_readonly("in_nodes", &SimulatedWay::in_nodes)
      .def_readonly("decoding", &SimulatedWay::decoding)
      .def_property_readonly("seconds", &SimulatedWay::seconds);
}

}  // namespace

void bind_simulate(py::module_& m) {
  bind_figures(m);
  m.def(
      "simulated_ways",
      [](const Simulation& simulation, double storage, double node_reading, double node_memory,
         double connection, double decoding, double request_wait, double requests_in_flight,
         double exchange_wait, double exchange_bytes) {
        return simulated_ways(simulation, {storage, node_reading, node_memory, connection, decoding,
                                           request_wait, requests_in_flight, exchange_wait, exchange_bytes});
      },
      py::arg("simulation"), py::kw_only(), py::arg("storage"), py::arg("node_reading"),
      py::arg("node_memory"), py::arg("connection"), py::arg("decoding"), py::arg("request_wait"),
      py::arg("requests_in_flight"), py::arg("exchange_wait"), py::arg("exchange_bytes"),
      "Each rank for itself, once a node, once a job: bytes and seconds at these rates, in bytes/s and "
      "seconds.");
  m.def(
      "simulate",
      [](const Catalog& catalog, const WeightMap& map, const std::vector<MeshDimension>& mesh,
         const std::string& dense, std::int64_t ranks_per_node, std::int64_t sample, int threads, bool strict,
         Progress* watched) {
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
          return simulate(tensors, catalog, map, options);
        });
      },
      py::arg("catalog"), py::arg("map"), py::arg("mesh"), py::arg("dense") = "auto",
      py::arg("ranks_per_node") = 8, py::arg("sample") = 0, py::arg("threads") = 0, py::arg("strict") = true,
      py::arg("progress") = nullptr,
      "Plans a load on every rank of a mesh, or on whole nodes with about `sample` of them.");
}

}  // namespace shardwright
