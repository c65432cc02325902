/// Exports: the three steps of storage/write/export.h, plain data in and out.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "python_shim/bindings/bindings.h"
#include "storage/format/checksums_file.h"
#include "storage/write/export.h"

namespace py = pybind11;

namespace shardwright {

void bind_exports(py::module_& m) {
  py::class_<ExportRequest>(m, "ExportRequest", "What is asked for; keeps its template and its map alive.")
      .def(py::init([](const Catalog* pattern, std::string model, std::string layout, bool quantise,
                       bool strict, std::uint64_t max_file_bytes, std::map<std::string, int> file_numbers,
                       bool strict_dtypes, const WeightMap* map) {
             return ExportRequest{
                 pattern,        std::move(model),        std::move(layout), quantise,      strict,
                 max_file_bytes, std::move(file_numbers), "model",           strict_dtypes, map};
           }),
           py::arg("template"), py::arg("model"), py::arg("layout"), py::arg("quantise"), py::arg("strict"),
           py::arg("max_file_bytes"), py::arg("file_numbers"), py::arg("strict_dtypes") = false,
           py::arg("map") = nullptr, py::keep_alive<1, 2>(), py::keep_alive<1, 10>())
      .def_readwrite("start_of_names", &ExportRequest::start_of_names);
  m.def(
      "describe_export",
      [](const std::vector<TensorSpec>& specs, const ExportRequest& request, const DeviceOptions& devices) {
        std::string bytes;
        {
          const py::gil_scoped_release release;
          bytes = describe_export(specs, request, devices);
        }
        return py::bytes(bytes);
      },
      py::arg("specs"), py::arg("request"), py::arg("devices") = DeviceOptions{});
  py::class_<PlannedExport>(m, "PlannedExport")
      .def_property_readonly("catalog", [](const PlannedExport& p) { return p.layout.catalog; })
      .def_property_readonly("total_size", [](const PlannedExport& p) { return p.layout.total_size; })
      .def_property_readonly("quantised", [](const PlannedExport& p) { return has_scales(p.layout.catalog); })
      .def_property_readonly("index", [](const PlannedExport& p) { return py::bytes(p.layout.index); })
      .def_property_readonly("shares",
                             [](const PlannedExport& p) {
                               py::list shares;
                               for (const std::string& share : p.shares) shares.append(py::bytes(share));
                               return shares;
                             })
      .def_readonly("left_out", &PlannedExport::left_out);
  m.def(
      "plan_export",
      [](const std::vector<py::bytes>& holdings, const ExportRequest& request,
         const std::filesystem::path& directory) {
        std::vector<std::string> bytes;
        for (const py::bytes& one : holdings) bytes.emplace_back(one);
        const py::gil_scoped_release release;
        return plan_export(bytes, request, directory);
      },
      py::arg("holdings"), py::arg("request"), py::arg("directory"));
  py::class_<ExportReport>(m, "ExportReport")
      .def_readonly("tensors", &ExportReport::tensors)
      .def_property_readonly("row_sums",
                             [](const ExportReport& report) { return py::bytes(report.row_sums); })
      .def_readonly("bytes_needed", &ExportReport::bytes_needed)
      .def_readonly("bytes_written", &ExportReport::bytes_written)
      .def_readonly("write_requests", &ExportReport::write_requests)
      .def_readonly("peak_staging_bytes", &ExportReport::peak_staging_bytes)
      .def_readonly("devices", &ExportReport::devices)
      .def_readonly("peak_device_bytes", &ExportReport::peak_device_bytes)
      .def_readonly("bytes_from_devices", &ExportReport::bytes_from_devices)
      .def_readonly("device_batches", &ExportReport::device_batches)
      .def_readonly("files", &ExportReport::files)
      .def_readonly("rounded", &ExportReport::rounded)
      .def_readonly("threads", &ExportReport::threads)
      .def_readonly("plan_seconds", &ExportReport::plan_seconds)
      .def_readonly("encode_seconds", &ExportReport::encode_seconds)
      .def_readonly("write_seconds", &ExportReport::write_seconds)
      .def_readonly("sync_seconds", &ExportReport::sync_seconds)
      .def_readonly("total_seconds", &ExportReport::total_seconds);
  m.def(
      "checksums_of",
      [](const std::filesystem::path& directory) {
        std::map<std::string, std::pair<std::vector<std::uint64_t>, std::vector<std::uint64_t>>> listed;
        if (const std::optional<Checksums> checksums = read_checksums(directory)) {
          for (const auto& [name, rows] : checksums->tensors) listed[name] = {rows.cuts, rows.sums};
        }
        return listed;
      },
      py::arg("directory"),
      "The cuts and sums of each tensor of an export (storage/format/row_checksums.h).");
  m.def(
      "checksums_of_export",
      [](const PlannedExport& planned, const std::vector<std::string>& row_sums,
         const std::filesystem::path& directory, const std::vector<std::string>& beside) {
        return py::bytes(checksums_of_export(planned.layout, row_sums, directory, beside));
      },
      py::arg("planned"), py::arg("row_sums"), py::arg("directory"), py::arg("beside"));
  m.def(
      "run_export",
      [](const py::bytes& share, const std::vector<TensorSpec>& specs, const ExportRequest& request,
         const std::filesystem::path& directory, int threads, std::size_t staging_bytes,
         const DeviceOptions& devices) {
        const std::string bytes = share;
        const py::gil_scoped_release release;
        return run_export(bytes, specs, request, directory, {threads, staging_bytes, devices});
      },
      py::arg("share"), py::arg("specs"), py::arg("request"), py::arg("directory"), py::arg("threads") = 0,
      py::arg("staging_bytes") = 0, py::arg("devices") = DeviceOptions{});
}

}  // namespace shardwright
