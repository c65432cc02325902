/// The Python module shardwright._exchange: what ranks of a job send each other, over torch's stores and
/// process groups. A module of its own, as it needs torch to be loaded. Links no wire form: protobuf would
/// find the one of shardwright._core registered twice.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "planner/error.h"
#include "planner/torch/exchange.h"

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

/// What a Python exception is to other ranks. The reverse is in shardwright._core, for all modules.
Error error_from(const py::error_already_set& raised) {
  const py::module_ core = py::module_::import("shardwright._core");
  const std::string text = py::str(raised.value());
  if (raised.matches(core.attr("PlanError"))) return {ErrorKind::mismatch, text};
  if (raised.matches(core.attr("CheckpointFormatError"))) return {ErrorKind::malformed, text};
  if (raised.matches(PyExc_ValueError)) return {ErrorKind::argument, text};
  return {ErrorKind::mismatch, std::string(py::str(raised.type().attr("__name__"))) + ": " + text};
}

void bind(py::module_& m) {
  m.def(
      "exchange",
      [](const py::object& over, int rank, int ranks, const std::string& name, double timeout,
         const std::string& mine, const std::string& problem, const py::function& answers) {
        const Peers peers = peers_from(over, rank, ranks, name, timeout);
        const auto give = [&]() -> std::string {
          if (!problem.empty()) throw Error(ErrorKind::mismatch, problem);
          return mine;
        };
        const auto answer = [&](const std::vector<std::string>& all) {
          const py::gil_scoped_acquire acquire;
          try {
            return answers(std::vector<py::bytes>(all.begin(), all.end())).cast<std::vector<std::string>>();
          } catch (const py::error_already_set& raised) {
            throw error_from(raised);
          }
        };
        std::string own;
        {
          const py::gil_scoped_release release;
          own = exchange(peers, give, answer);
        }
        return py::bytes(own);
      },
      py::arg("over"), py::arg("rank"), py::arg("ranks"), py::arg("name"), py::arg("timeout"),
      py::arg("mine"), py::arg("problem"), py::arg("answers"),
      "Gives rank 0 bytes, or a problem, and returns its answer. On rank 0 `answers` turns the bytes of all "
      "ranks into the answers. Problems of any rank are raised on all.");
}

}  // namespace
}  // namespace shardwright

PYBIND11_MODULE(_exchange, m) {
  m.doc() = "What ranks send each other. Use shardwright.dcp.save_together, which calls it.";
  shardwright::bind(m);
}
