/// What ranks of a save tell of what they have written, for sharded_writer.py.

#include "planner/save/write_results.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/manifest.h"
#include "storage/format/torch_metadata.h"
#include "storage/format/torch_stream.h"

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
  m.attr("torch_metadata_name") = torch_metadata_name;
  py::class_<TorchSave>(m, "TorchSave", "What torch's metadata tells of a save.")
      .def(
          py::init(
              [](std::string checkpoint_id, std::string save_id,
                 const std::optional<
                     std::vector<std::pair<std::string, std::vector<std::pair<std::string, bool>>>>>& paths) {
                TorchSave save{std::move(checkpoint_id), std::move(save_id), std::nullopt};
                if (!paths) return save;
                save.paths.emplace();
                for (const auto& [name, keys] : *paths) {
                  save.paths->emplace_back(name, std::vector<PathKey>());
                  for (const auto& [text, is_number] : keys)
                    save.paths->back().second.push_back({text, is_number});
                }
                return save;
              }),
          py::arg("checkpoint_id"), py::arg("save_id"), py::arg("paths"),
          "`paths`: [(name, [(key, whether it is a number)])] of nested state dicts, or None.");
  m.def(
      "write_manifest",
      [](const std::filesystem::path& directory, const std::vector<std::string>& ranks,
         const std::vector<std::string>& names, std::string planner_data, std::uint64_t order, bool sync,
         const std::optional<TorchSave>& torch) {
        const py::gil_scoped_release release;
        Manifest manifest = manifest_of(ranks, names);
        manifest.planner_data = std::move(planner_data);
        manifest.order = order;
        if (torch) add_torch_metadata(directory, manifest, *torch, sync);
        write_manifest(directory, manifest, sync);
      },
      py::arg("directory"), py::arg("results"), py::arg("names"), py::arg("planner_data"), py::arg("order"),
      py::arg("sync"), py::arg("torch") = py::none(),
      "Writes the manifest of what all ranks have told, and torch's metadata before it if that is wanted; "
      "`names` are all values that must be among it.");
  m.def(
      "torch_stream_header",
      [](const std::string& name, const std::string& dtype, std::uint64_t element_bytes, const Shape& offset,
         const Shape& size) {
        return py::bytes(torch_stream_header(name, dtype, element_bytes, {offset, size}));
      },
      py::arg("name"), py::arg("dtype"), py::arg("element_bytes"), py::arg("offset"), py::arg("size"),
      "See storage/format/torch_stream.h.");
}

}  // namespace shardwright
