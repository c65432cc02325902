/// The Python module shardwright._exchange: what ranks of a job send each other, over torch's stores and
/// process groups. A module of its own, as it needs torch to be loaded.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/exchange.h"
#include "planner/plan_together.h"

PYBIND11_DECLARE_HOLDER_TYPE(T, c10::intrusive_ptr<T>, true)

namespace py = pybind11;

namespace shardwright {
namespace {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
using Store = c10::intrusive_ptr<c10d::Store>;

Peers peers_from(const py::object& over, int rank, int ranks, const std::string& name, double timeout) {
  const std::chrono::milliseconds milliseconds(static_cast<std::int64_t>(timeout * 1000));
  if (py::isinstance<c10d::ProcessGroup>(over)) return peers_of(over.cast<Group>(), name, milliseconds);
  return {rank, ranks, over.cast<Store>(), nullptr, name, milliseconds};
}

/// Errors become the exceptions of shardwright._core, which translates them.
void bind(py::module_& m) {
  m.def(
      "plan_save_together",
      [](const py::object& over, int rank, int ranks, const std::string& name, double timeout,
         const std::string& state, SavePlanCache& cache) {
        Peers peers = peers_from(over, rank, ranks, name, timeout);
        const py::gil_scoped_release release;
        int number = 0;
        const RankState mine = decode_state(state);
        SavePlanOfRank plan =
            plan_save_together(mine, cache, [&](const std::string& bytes, const Answers& answers) {
              peers.name = name + "/" + std::to_string(++number);
              return exchange(
                  peers, [&] { return bytes; }, answers);
            });
        return std::pair(std::move(plan.left_to_others), plan.unchanged);
      },
      py::arg("over"), py::arg("rank"), py::arg("ranks"), py::arg("name"), py::arg("timeout"),
      py::arg("state"), py::arg("cache"),
      "Plans a save with all ranks that share a process group or a store: (for each part of the state, the "
      "items that others write; whether nothing had changed).");
  m.def(
      "agree",
      [](const py::object& over, int rank, int ranks, const std::string& name, double timeout,
         const std::string& problem) {
        const Peers peers = peers_from(over, rank, ranks, name, timeout);
        const py::gil_scoped_release release;
        exchange(
            peers,
            [&]() -> std::string {
              if (!problem.empty()) throw Error(ErrorKind::mismatch, problem);
              return {};
            },
            [](const std::vector<std::string>& all) { return std::vector<std::string>(all.size()); });
      },
      py::arg("over"), py::arg("rank"), py::arg("ranks"), py::arg("name"), py::arg("timeout"),
      py::arg("problem"), "Raises PlanError on all ranks if any has a problem.");
}

}  // namespace
}  // namespace shardwright

PYBIND11_MODULE(_exchange, m) {
  m.doc() = "What ranks send each other. Use shardwright.save_planning, which calls it.";
  py::module_::import("shardwright._core");
  shardwright::bind(m);
}
