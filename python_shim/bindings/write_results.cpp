/// What ranks of a save tell of what they have written, for sharded_writer.py.

#include "planner/save/write_results.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <string>
#include <tuple>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "storage/format/manifest.h"

namespace py = pybind11;

namespace shardwright {

void bind_write_results(py::module_& m) {
  m.def(
      "encode_failure",
      [](std::int64_t rank, const std::string& failure, int error_number, bool misfit) {
        WriteResults results;
        results.rank = rank;
        results.failure = failure;
        results.error_number = error_number;
        results.misfit = misfit;
        return py::bytes(encode(results));
      },
      py::arg("rank"), py::arg("failure"), py::arg("error_number"), py::arg("misfit"),
      "What a rank tells that has not written its part.");
  m.def(
      "failures_of_results",
      [](const std::vector<std::string>& ranks) {
        std::vector<std::tuple<std::int64_t, std::string, int, bool>> failures;
        for (const std::string& bytes : ranks) {
          WriteResults results = decode_results(bytes);
          if (!results.failure.empty())
            failures.emplace_back(results.rank, std::move(results.failure), results.error_number,
                                  results.misfit);
        }
        return failures;
      },
      py::arg("ranks"),
      "[(rank, what went wrong, errno or 0, whether it is a PlanError)] of those that have failed.");
  m.def(
      "write_manifest",
      [](const std::filesystem::path& directory, const std::vector<std::string>& ranks,
         const std::vector<std::string>& names, std::string planner_data, std::uint64_t order, bool sync) {
        const py::gil_scoped_release release;
        Manifest manifest = manifest_of(ranks, names);
        manifest.planner_data = std::move(planner_data);
        manifest.order = order;
        write_manifest(directory, manifest, sync);
      },
      py::arg("directory"), py::arg("results"), py::arg("names"), py::arg("planner_data"), py::arg("order"),
      py::arg("sync"),
      "Writes the manifest of what all ranks have told; `names` are all values that must be among it.");
}

}  // namespace shardwright
