/// What ranks of a save tell of what they have written, for sharded_writer.py.

#include "planner/save/write_results.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "storage/format/manifest.h"

namespace py = pybind11;

namespace shardwright {
namespace {

using BoxFacts = std::tuple<std::uint32_t, Shape, Shape>;  // index of the value, offset, size
using PlaceFacts =
    std::tuple<std::uint32_t, std::uint64_t, std::uint64_t, std::string>;  // file, begin, end, checksums
using FileFacts = std::tuple<std::string, std::uint64_t, std::uint64_t,
                             std::uint64_t>;  // name, size, header: bytes, checksum

py::bytes encode_results(std::int64_t rank, const std::string& values,
                         const std::vector<std::pair<BoxFacts, PlaceFacts>>& items,
                         const std::vector<FileFacts>& files, const std::string& failure, int error_number,
                         bool misfit) {
  WriteResults results;
  results.rank = rank;
  results.values = decode_values(values);
  for (const auto& [box, place] : items) {
    results.items.add(std::get<0>(box), std::get<1>(box), std::get<2>(box));
    const auto& [file, begin, end, packed] = place;
    std::vector<std::uint64_t> checksums(packed.size() / sizeof(std::uint64_t));
    packed.copy(reinterpret_cast<char*>(checksums.data()), checksums.size() * sizeof(std::uint64_t));
    results.places.push_back({file, {begin, end, std::move(checksums)}});
  }
  for (const auto& [name, size, header_bytes, checksum] : files)
    results.files.push_back({name, size, header_bytes, checksum});
  results.failure = failure;
  results.error_number = error_number;
  results.misfit = misfit;
  return py::bytes(encode(results));
}

}  // namespace

void bind_write_results(py::module_& m) {
  m.def(
      "encode_results", &encode_results, py::arg("rank"), py::arg("values"), py::arg("items"),
      py::arg("files"), py::arg("failure"), py::arg("error_number"), py::arg("misfit"),
      "What a rank has written: of values that are described, [((index of the value, offset, size), (file, "
      "begin, end, checksums))] in the order of the values, and [(name, size, header bytes, its checksum)].");
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
         const std::map<std::string, std::string>& safetensors_dtypes, const std::vector<std::string>& names,
         std::string planner_data, std::uint64_t order, bool sync) {
        const py::gil_scoped_release release;
        std::vector<WriteResults> results;
        results.reserve(ranks.size());
        for (const std::string& bytes : ranks) results.push_back(decode_results(bytes));
        Manifest manifest = manifest_of(results, safetensors_dtypes);
        expect_all(manifest, names);
        manifest.planner_data = std::move(planner_data);
        manifest.order = order;
        write_manifest(directory, manifest, sync);
      },
      py::arg("directory"), py::arg("results"), py::arg("safetensors_dtypes"), py::arg("names"),
      py::arg("planner_data"), py::arg("order"), py::arg("sync"),
      "Writes the manifest of what all ranks have told; `names` are all values that must be among it.");
}

}  // namespace shardwright
