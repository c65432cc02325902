/// The rounds of ranks, which the package runs.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "python_shim/bindings/bindings.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// What a rank tells, as bytes. Valid while `mine` is.
py::cpp_function told_by(const std::function<std::string()>& mine) {
  return py::cpp_function([&mine] {
    std::string told;
    {
      const py::gil_scoped_release released;
      told = mine();
    }
    return py::bytes(told);
  });
}

}  // namespace

Job job_of(int rank, int ranks, const py::function& round) {
  Job job{rank, ranks, nullptr};
  if (ranks == 1) return job;
  job.round = [round](const std::function<std::string()>& mine, const Job::Answers& answers) {
    const py::gil_scoped_acquire acquired;
    const py::cpp_function of_first([&](const std::vector<std::string>& told) {
      std::vector<std::string> answered;
      {
        const py::gil_scoped_release released;
        answered = answers(told);
      }
      return std::vector<py::bytes>(answered.begin(), answered.end());
    });
    return round(told_by(mine), of_first).cast<std::string>();
  };
  return job;
}

Job job_of(int rank, int ranks, const py::function& round, const py::function& gather) {
  Job job = job_of(rank, ranks, round);
  if (ranks == 1) return job;
  job.gather = [gather](std::size_t bytes, const std::function<std::string()>& mine) {
    const py::gil_scoped_acquire acquired;
    return gather(bytes, told_by(mine)).cast<std::vector<std::string>>();
  };
  return job;
}

}  // namespace shardwright
