/// Handing a trainer's weights to an engine: storage/handover/hand_over.h. Ranks and transport are the
/// package's.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/handover/engine_transfers.h"
#include "planner/handover/refit_plan.h"
#include "planner/save/export_wire.h"
#include "python_shim/bindings/bindings.h"
#include "storage/handover/digest_of_side.h"
#include "storage/handover/hand_over.h"
#include "storage/handover/node_board.h"
#include "storage/handover/refit_steps.h"
#include "storage/write/export_share.h"
#include "storage/write/export_tasks.h"

namespace py = pybind11;

namespace shardwright {
namespace {

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::duration<double>(seconds));
}

/// What `transport` does: send(rank, memory) and receive(rank, memory) return a number, which wait(number)
/// gets; post(key, text) and look(key) are its board.
Transport transport_of(const py::object& object) {
  const py::object send = object.attr("send");
  const py::object receive = object.attr("receive");
  const py::object wait = object.attr("wait");
  const py::object post = object.attr("post");
  const py::object look = object.attr("look");
  Transport transport;
  transport.send = [send](int rank, const std::byte* data, std::size_t bytes) {
    const py::gil_scoped_acquire acquired;
    // torch makes tensors of memory that may be written only, and does not write to what it sends.
    auto* memory = const_cast<std::byte*>(data);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
    return send(rank, py::memoryview::from_memory(memory, static_cast<py::ssize_t>(bytes)))
        .cast<std::uint64_t>();
  };
  transport.receive = [receive](int rank, std::byte* data, std::size_t bytes) {
    const py::gil_scoped_acquire acquired;
    return receive(rank, py::memoryview::from_memory(data, static_cast<py::ssize_t>(bytes)))
        .cast<std::uint64_t>();
  };
  transport.wait = [wait](std::uint64_t begun) {
    const py::gil_scoped_acquire acquired;
    wait(begun);
  };
  transport.post = [post](const std::string& key, const std::string& text) {
    const py::gil_scoped_acquire acquired;
    post(key, text);
  };
  transport.look = [look](const std::string& key) {
    const py::gil_scoped_acquire acquired;
    return look(key).cast<std::optional<std::string>>();
  };
  return transport;
}

/// A side of a hand-over with all that it points at.
struct OwnedSide {
  std::vector<TensorSpec> specs;
  RankState state;
  RefitSide side;
};

using BoxFacts = std::tuple<std::string, Shape, Shape, Shape>;  // name, view, offset, size

std::vector<BoxFacts> facts_of(const HandedList& list, const Catalog& catalog) {
  std::vector<BoxFacts> facts;
  for (const HandedBox& handed : list.boxes) {
    facts.emplace_back(stored_name(catalog.tensors[handed.part.tensor]), handed.part.view,
                       handed.part.box.offset, handed.part.box.size);
  }
  return facts;
}

std::map<int, std::vector<BoxFacts>> facts_of(const std::vector<HandedList>& lists,
                                              const PlannedRefit& planned) {
  std::map<int, std::vector<BoxFacts>> facts;
  for (const HandedList& list : lists) facts[list.rank] = facts_of(list, planned.described->layout.catalog);
  return facts;
}

std::map<int, std::uint64_t> bytes_of(const std::vector<HandedList>& lists, const PlannedRefit& planned) {
  std::map<int, std::uint64_t> bytes;
  for (const HandedList& list : lists) {
    for (const HandedBox& handed : list.boxes)
      bytes[list.rank] += bytes_of_part(handed.part, planned.described->layout.catalog);
  }
  return bytes;
}

void bind_outcome(py::module_& m) {
  py::class_<RefitOutcome>(m, "RefitOutcome", "See storage/handover/refit.h.")
      .def_readonly("committed", &RefitOutcome::committed)
      .def_readonly("left", &RefitOutcome::left)
      .def_property_readonly("bytes_sent", [](const RefitOutcome& one) { return one.report.bytes_sent; })
      .def_property_readonly("bytes_received",
                             [](const RefitOutcome& one) { return one.report.bytes_received; })
      .def_property_readonly("bytes_kept", [](const RefitOutcome& one) { return one.report.bytes_kept; })
      .def_property_readonly("messages", [](const RefitOutcome& one) { return one.report.messages; })
      .def_property_readonly("peak_staging_bytes",
                             [](const RefitOutcome& one) { return one.report.peak_staging_bytes; })
      .def_property_readonly("bytes_in_memory",
                             [](const RefitOutcome& one) { return one.report.bytes_in_memory; })
      .def_readonly("not_shared", &RefitOutcome::not_shared)
      .def_property_readonly("seconds", [](const RefitOutcome& one) { return one.report.seconds; })
      .def_property_readonly("has_failed", [](const RefitOutcome& one) { return one.failure != nullptr; })
      .def(
          "expect_success",
          [](const RefitOutcome& one) {
            if (one.failure) std::rethrow_exception(one.failure);
          },
          "Raises what went wrong.");
}

void bind_sides(py::module_& m) {
  py::class_<EnginePart>(m, "EnginePart", "See planner/handover/engine_tensors.h.")
      .def(py::init([](std::string name, Shape offset, Shape size, Shape at, std::vector<int> axes,
                       Shape steps, Shape view) {
             return EnginePart{std::move(name),  {std::move(offset), std::move(size)},
                               std::move(at),    std::move(axes),
                               std::move(steps), std::move(view)};
           }),
           py::arg("name"), py::arg("offset"), py::arg("size"), py::arg("at"), py::arg("axes"),
           py::arg("steps"), py::arg("view"));
  py::class_<OwnedSide>(m, "RefitSide", "What a rank brings to a hand-over.")
      .def(py::init<>())
      .def(
          "set_trainer",
          [](OwnedSide& owned, std::vector<TensorSpec> specs, const std::string& state) {
            owned.specs = std::move(specs);
            owned.state = decode_state(state);
            owned.side.specs = &owned.specs;
            owned.side.state = &owned.state;
          },
          py::arg("specs"), py::arg("state"))
      .def(
          "keep_digest",
          [](OwnedSide& owned, const ExportRequest& request) {
            owned.side.digest = checked_digest_of_side(owned.side, request);
          },
          py::arg("request"), "Of a side that stays as it is, and is brought with this request alone.")
      .def(
          "add_engine_tensor",
          [](OwnedSide& owned, std::string name, const std::string& dtype, Shape shape,
             std::vector<EnginePart> parts, std::uintptr_t address, Shape strides) {
            const std::optional<DType> found = dtype_named(dtype);
            if (!found) throw Error(ErrorKind::argument, name + ": " + dtype + " is no dtype of safetensors");
            owned.side.engine.push_back({std::move(name), *found, std::move(shape), std::move(parts)});
            owned.side.memory.push_back(
                {reinterpret_cast<std::byte*>(address), std::move(strides)});  // NOLINT
          },
          py::arg("name"), py::arg("dtype"), py::arg("shape"), py::arg("parts"), py::arg("address"),
          py::arg("strides"));
}

/// What a trainer's rank gives, of tensors that need no memory.
std::vector<ExportedBox> given_by_rank(const SharedExport& shared) {
  const ExportLayout& layout = shared.described.layout;
  const LoadPlan plan = plan_of_parts(shared.parts.specs, shared.described);
  const ExportTasks work = export_tasks(
      shared.parts, layout.catalog, plan, [](const SourceTensor&) { return false; },
      [](const TensorSpec&) {
        return TaskBounds{std::uint64_t{1} << 40, 0};
      });
  return given_by(work, shared.parts, layout);
}

/// The steps of planning, one by one, for who has all ranks in one process.
void bind_refit_steps(py::module_& m) {
  m.def(
      "begin_refit_plan",
      [](const std::string& share, const OwnedSide& owned, const ExportRequest& request,
         std::size_t message_bytes, PlannedRefit& planned) {
        std::string needs;
        {
          const py::gil_scoped_release released;
          planned = begin_plan(described_export(request, decode_tensors(decode_share(share).tensors), {}),
                               owned.side.engine, message_bytes);
          if (!planned.transfers.empty()) needs = encode_needs(needs_of(planned.transfers));
        }
        return py::bytes(needs);
      },
      py::arg("share"), py::arg("side"), py::arg("request"), py::arg("message_bytes"), py::arg("planned"),
      "What a rank needs.");
  m.def(
      "needs_beside",
      [](const PlannedRefit& planned, const OwnedSide& owned) {
        return py::bytes(encode_needs(needs_of(transfers_into(
            owned.side.engine, planned.described->layout.catalog, "what the trainer hands over"))));
      },
      py::arg("planned"), py::arg("side"), "What another rank needs, by the description that this one has.");
  m.def(
      "plan_sends",
      [](int rank, const std::string& share, const std::vector<TensorSpec>& specs, const std::string& state,
         const ExportRequest& request, const std::vector<std::string>& needs, std::size_t message_bytes,
         PlannedRefit& planned) {
        std::vector<std::string> told;
        {
          const py::gil_scoped_release released;
          SharedExport shared = shared_export(share, specs, decode_state(state), request, {});
          std::vector<ExportedBox> given = given_by_rank(shared);
          planned = begin_plan(std::move(shared.described), {}, message_bytes);
          told = plan_sends(rank, std::move(given), needs, planned);
        }
        return std::vector<py::bytes>(told.begin(), told.end());
      },
      py::arg("rank"), py::arg("share"), py::arg("specs"), py::arg("state"), py::arg("request"),
      py::arg("needs"), py::arg("message_bytes"), py::arg("planned"),
      "What each rank is told of what this one sends.");
  m.def("plan_receives", &plan_receives, py::arg("told"), py::arg("planned"));
}

void bind_board(py::module_& m) {
  py::class_<NodeBoard>(m, "NodeBoard", "See storage/handover/node_board.h.")
      .def(py::init([](SharedMemory& memory, std::size_t ranks, std::size_t rank, std::size_t bytes) {
             return NodeBoard(std::move(memory), ranks, rank, bytes);
           }),
           py::arg("memory"), py::arg("ranks"), py::arg("rank"), py::arg("bytes"))
      .def_static("bytes_of", &NodeBoard::bytes_of, py::arg("ranks"), py::arg("bytes"))
      .def(
          "gather",
          [](NodeBoard& board, const std::string& mine, double timeout) {
            std::vector<std::string> told;
            {
              const py::gil_scoped_release released;
              told = board.gather(mine, milliseconds_of(timeout));
            }
            return std::vector<py::bytes>(told.begin(), told.end());
          },
          py::arg("mine"), py::arg("timeout"), "What all ranks tell, as many bytes on each.");
}

}  // namespace

void bind_refits(py::module_& m) {
  bind_board(m);
  bind_sides(m);
  bind_outcome(m);
  py::class_<PlannedRefit>(m, "PlannedRefit", "See storage/handover/hand_over.h; empty at first.")
      .def(py::init<>())
      .def_property_readonly("sends", [](const PlannedRefit& one) { return facts_of(one.plan.sends, one); })
      .def_property_readonly("receives",
                             [](const PlannedRefit& one) { return facts_of(one.plan.receives, one); })
      .def_property_readonly("bytes_to",
                             [](const PlannedRefit& one) { return bytes_of(one.plan.sends, one); })
      .def_property_readonly("bytes_from",
                             [](const PlannedRefit& one) { return bytes_of(one.plan.receives, one); })
      .def("encode", [](const PlannedRefit& one) { return py::bytes(encode(one.plan)); });
  m.def(
      "plan_refit",
      [](int rank, int ranks, const py::function& round, const py::function& gather, const OwnedSide& owned,
         const ExportRequest& request, PlannedRefit& planned, std::size_t staging_bytes, int threads,
         const DeviceOptions& devices, const std::string& node) {
        const Job job = job_of(rank, ranks, round, gather);
        const py::gil_scoped_release released;
        return plan_refit_together(job, owned.side, request, planned,
                                   {staging_bytes, threads, devices, {}, node});
      },
      py::arg("rank"), py::arg("ranks"), py::arg("round"), py::arg("gather"), py::arg("side"),
      py::arg("request"), py::arg("planned"), py::arg("staging_bytes"), py::arg("threads"),
      py::arg("devices"), py::arg("node"));
  m.def(
      "hand_over",
      [](int rank, int ranks, const py::function& round, const py::function& gather, const OwnedSide& owned,
         const ExportRequest& request, PlannedRefit& planned, const py::object& transport,
         std::size_t staging_bytes, int threads, const DeviceOptions& devices, const std::string& node,
         double timeout) {
        const Job job = job_of(rank, ranks, round, gather);
        const Transport way = transport_of(transport);
        const py::gil_scoped_release released;
        return hand_over(
            job, owned.side, request, planned, way,
            {staging_bytes, threads, devices, check_for_interrupt, node, milliseconds_of(timeout)});
      },
      py::arg("rank"), py::arg("ranks"), py::arg("round"), py::arg("gather"), py::arg("side"),
      py::arg("request"), py::arg("planned"), py::arg("transport"), py::arg("staging_bytes"),
      py::arg("threads"), py::arg("devices"), py::arg("node"), py::arg("timeout"));
  bind_refit_steps(m);
}

}  // namespace shardwright
