// Running a load plan, and what it reports.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "planner/error.h"
#include "planner/load/plan_wire.h"
#include "python_shim/bindings/bindings.h"
#include "storage/boxes/box_reading.h"
#include "storage/load/cooperative_load.h"
#include "storage/load/load.h"
#include "storage/load/shared_memory.h"

namespace py = pybind11;

namespace shardwright {
namespace {

Reads reads_from(const py::object& value) {
  const auto name = py::isinstance<py::str>(value) ? value.cast<std::string>() : "";
  if (name == "auto") return Reads::automatic;
  if (name == "pread") return Reads::pread;
  if (name == "io_uring") return Reads::io_uring;
  throw Error(ErrorKind::argument, "reads: expected \"auto\", \"pread\" or \"io_uring\", found " +
                                       py::repr(value).cast<std::string>());
}

DirectIo direct_io_from(const py::object& value) {
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>() ? DirectIo::always : DirectIo::never;
  if (py::isinstance<py::str>(value) && value.cast<std::string>() == "auto") return DirectIo::automatic;
  throw Error(ErrorKind::argument,
              "direct_io: expected \"auto\", True or False, found " + py::repr(value).cast<std::string>());
}

bool huge_pages_from(const py::object& value) {
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  throw Error(ErrorKind::argument,
              "huge_pages: expected True or False, found " + py::repr(value).cast<std::string>());
}

LoadOptions options_from(int threads, std::size_t staging_bytes, const py::object& reads,
                         const py::object& direct_io, const py::object& huge_pages,
                         const std::optional<std::filesystem::path>& trace, int trace_process,
                         std::optional<std::size_t> device_memory, std::optional<bool> checks) {
  LoadOptions options;
  if (checks) options.checks = *checks ? Checks::all : Checks::none;
  options.threads = threads;
  options.staging_bytes = staging_bytes;
  options.reads = reads_from(reads);
  options.direct_io = direct_io_from(direct_io);
  options.huge_pages = huge_pages_from(huge_pages);
  options.trace = trace.value_or("");
  options.trace_process = trace_process;
  if (device_memory) options.devices.memory = *device_memory;
  options.check_for_interrupt = check_for_interrupt;
  return options;
}

/// Options that let Ctrl-C stop the load and call `progress`, which must outlive it.
LoadOptions with_callbacks(LoadOptions options, const std::optional<py::function>& progress) {
  options.check_for_interrupt = check_for_interrupt;
  if (progress) {
    options.progress = [&progress](std::uint64_t done, std::uint64_t total) {
      const py::gil_scoped_acquire acquire;
      (*progress)(done, total);
    };
  }
  return options;
}

void bind_options(py::module_& m) {
  py::class_<LoadOptions>(m, "LoadOptions")
      .def(py::init(&options_from), py::arg("threads") = 0, py::arg("staging_bytes") = 0,
           py::arg("reads") = "auto", py::arg("direct_io") = "auto", py::arg("huge_pages") = false,
           py::arg("trace") = py::none(), py::arg("trace_process") = 0, py::arg("device_memory") = py::none(),
           py::arg("checks") = py::none())
      .def("without_trace",
           [](LoadOptions options) {
             options.trace.clear();
             return options;
           })
      .def(
          "after",
          [](LoadOptions options, const std::map<int, std::uintptr_t>& streams) {
            options.devices.streams = streams_from(streams);
            return options;
          },
          py::arg("streams"), "The same, after the work of these: for each CUDA device a cudaStream_t.");
  py::class_<LoadReport>(m, "LoadReport")
      .def_readonly("tensors", &LoadReport::tensors)
      .def_readonly("bytes_needed", &LoadReport::bytes_needed)
      .def_readonly("bytes_read", &LoadReport::bytes_read)
      .def_readonly("bytes_received", &LoadReport::bytes_received)
      .def_readonly("bytes_checked", &LoadReport::bytes_checked)
      .def_readonly("bytes_written", &LoadReport::bytes_written)
      .def_readonly("read_requests", &LoadReport::read_requests)
      .def_readonly("boxes_with_gaps", &LoadReport::boxes_with_gaps)
      .def_readonly("boxes_in_pieces", &LoadReport::boxes_in_pieces)
      .def_readonly("peak_staging_bytes", &LoadReport::peak_staging_bytes)
      .def_readonly("devices", &LoadReport::devices)
      .def_readonly("peak_device_bytes", &LoadReport::peak_device_bytes)
      .def_readonly("bytes_to_devices", &LoadReport::bytes_to_devices)
      .def_readonly("bytes_gpu_direct", &LoadReport::bytes_gpu_direct)
      .def_readonly("device_batches", &LoadReport::device_batches)
      .def_readonly("files", &LoadReport::files)
      .def_readonly("files_direct", &LoadReport::files_direct)
      .def_readonly("files_remote", &LoadReport::files_remote)
      .def_readonly("files_io_uring", &LoadReport::files_io_uring)
      .def_readonly("threads", &LoadReport::threads)
      .def_readonly("instruction_set", &LoadReport::instruction_set)
      .def_readonly("read_seconds", &LoadReport::read_seconds)
      .def_readonly("decode_seconds", &LoadReport::decode_seconds)
      .def_readonly("together_seconds", &LoadReport::together_seconds)
      .def_readonly("total_seconds", &LoadReport::total_seconds)
      .def_readonly("unused", &LoadReport::unused)
      .def_readonly("unknown", &LoadReport::unknown)
      .def_readonly("not_loaded", &LoadReport::not_loaded)
      .def_readonly("zeroed", &LoadReport::zeroed);
}

void bind_shared_memory(py::module_& m) {
  m.def("this_node", &this_node, "Names the machine and its namespace of processes; empty if unknown.");
  py::class_<SharedMemory>(m, "SharedMemory", "Memory that processes of a node share, without a name.")
      .def_static("create", &SharedMemory::create, py::arg("bytes"))
      .def_static("open", &SharedMemory::open, py::arg("path"), py::arg("bytes"))
      .def_property_readonly("path", &SharedMemory::path);
}

void bind_cooperation(py::module_& m) {
  py::class_<CooperativeLoad>(m, "CooperativeLoad")
      .def(py::init<const LoadPlan&, const Catalog&, std::vector<TensorSpec>, const LoadOptions&>(),
           py::arg("plan"), py::arg("catalog"), py::arg("specs"), py::arg("options"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("to_devices", &CooperativeLoad::to_devices)
      .def("partly_written", &CooperativeLoad::partly_written)
      .def("abandon", &CooperativeLoad::abandon, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly(
          "terms",
          [](const CooperativeLoad& load) {
            const CooperationTerms& terms = load.terms();
            return std::tuple(terms.piece_bytes, terms.round_bytes, terms.files_on_disk);
          },
          "What this rank can do: for `begin`, on all ranks.")
      .def(
          "begin",
          [](CooperativeLoad& load, const Catalog& catalog, const std::vector<std::string>& plans_of_ranks,
             const std::vector<std::tuple<std::uint64_t, std::uint64_t, std::vector<std::string>>>& terms,
             int rank, bool by_shared_memory, bool cached_files_apart) {
            std::vector<std::vector<Transfer>> transfers;
            for (const std::string& bytes : plans_of_ranks) {
              transfers.push_back(decode_transfers(bytes, catalog));
            }
            std::vector<CooperationTerms> terms_of_ranks;
            for (const auto& [piece, round, files] : terms) terms_of_ranks.push_back({piece, round, files});
            load.begin(transfers, terms_of_ranks, rank,
                       {by_shared_memory ? HandingOver::by_shared_memory : HandingOver::in_rounds,
                        cached_files_apart});
          },
          py::arg("catalog"), py::arg("plans_of_ranks"), py::arg("terms_of_ranks"), py::arg("rank"),
          py::arg("by_shared_memory"), py::arg("cached_files_apart"),
          "`plans_of_ranks` are the ranks' plans as encode_plan gives them.")
      .def_property_readonly("pieces", &CooperativeLoad::pieces, "That are read for several ranks.")
      .def_property_readonly("node_bytes", &CooperativeLoad::node_bytes)
      .def(
          "join_node", [](CooperativeLoad& load, SharedMemory& memory) { load.join_node(std::move(memory)); },
          py::arg("memory"), "Takes the memory over.")
      .def("fail_on_node", &CooperativeLoad::fail_on_node)
      .def(
          "read_on_node",
          [](CooperativeLoad& load, double timeout, const std::optional<py::function>& progress) {
            const LoadOptions options = with_callbacks({}, progress);
            const py::gil_scoped_release release;
            return load.read_on_node(std::chrono::milliseconds(static_cast<std::int64_t>(timeout * 1000)),
                                     options);
          },
          py::arg("timeout"), py::arg("progress") = py::none(),
          "Reads with the ranks that have joined; `timeout` in seconds. False if another has failed.")
      .def_property_readonly("rounds", &CooperativeLoad::rounds)
      .def_property_readonly("bytes_done", &CooperativeLoad::bytes_done)
      .def_property_readonly("bytes_in_all", &CooperativeLoad::bytes_in_all)
      .def("bytes_to", &CooperativeLoad::bytes_to, py::arg("round"))
      .def("bytes_from", &CooperativeLoad::bytes_from, py::arg("round"))
      .def(
          "finish",
          [](CooperativeLoad& load, const std::optional<py::function>& progress) {
            const LoadOptions options = with_callbacks({}, progress);
            const py::gil_scoped_release release;
            return load.finish(options);
          },
          py::arg("progress") = py::none(), "Loads what this rank alone needs.")
      .def(
          "read",
          [](CooperativeLoad& load, std::size_t round, std::uintptr_t outgoing) {
            load.read(round, reinterpret_cast<std::byte*>(outgoing));  // NOLINT(performance-no-int-to-ptr)
          },
          py::arg("round"), py::arg("outgoing"), py::call_guard<py::gil_scoped_release>())
      .def(
          "place",
          [](CooperativeLoad& load, std::size_t round, std::uintptr_t incoming) {
            load.place(round,
                       reinterpret_cast<const std::byte*>(incoming));  // NOLINT(performance-no-int-to-ptr)
          },
          py::arg("round"), py::arg("incoming"), py::call_guard<py::gil_scoped_release>());
}

void bind_running(py::module_& m) {
  py::class_<ReadingFigures>(m, "ReadingFigures")
      .def_readonly("bytes", &ReadingFigures::bytes)
      .def_readonly("requests", &ReadingFigures::requests)
      .def_readonly("boxes_with_gaps", &ReadingFigures::boxes_with_gaps)
      .def_readonly("boxes_in_pieces", &ReadingFigures::boxes_in_pieces);
  m.def(
      "reading_figures",
      [](const LoadPlan& plan, const Catalog& catalog) { return reading_figures(plan, catalog); },
      py::arg("plan"), py::arg("catalog"), "What reading the plan from files in the page cache comes to.");
  m.def(
      "run_load",
      [](const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
         const LoadOptions& plain, const std::optional<py::function>& progress) {
        const LoadOptions options = with_callbacks(plain, progress);
        const py::gil_scoped_release release;
        return load(plan, catalog, specs, options);
      },
      py::arg("plan"), py::arg("catalog"), py::arg("specs"), py::arg("options") = LoadOptions(),
      py::arg("progress") = py::none());
}

}  // namespace

void bind_loads(py::module_& m) {
  bind_options(m);
  bind_shared_memory(m);
  bind_cooperation(m);
  bind_running(m);
}

}  // namespace shardwright
