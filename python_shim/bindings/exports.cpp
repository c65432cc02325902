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
#include "storage/write/files_beside.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// Contents as bytes, by name.
py::dict as_bytes(const FileContents& files) {
  py::dict contents;
  for (const auto& [name, content] : files) contents[py::str(name)] = py::bytes(content);
  return contents;
}

void bind_files_beside(py::module_& m) {
  m.def(
      "template_files",
      [](const std::filesystem::path& directory, bool quantised, bool as_template) {
        FileContents files;
        {
          const py::gil_scoped_release release;
          files = template_files(directory, quantised, as_template);
        }
        return as_bytes(files);
      },
      py::arg("directory"), py::arg("quantised"), py::arg("as_template") = false,
      "See storage/write/files_beside.h.");
  m.def(
      "kept_files",
      [](const std::filesystem::path& directory, const std::vector<std::string>& names, bool quantised) {
        return as_bytes(kept_files(directory, names, quantised));
      },
      py::arg("directory"), py::arg("names"), py::arg("quantised"), "See storage/write/files_beside.h.");
  m.def(
      "config_of",
      [](const std::string& text, bool quantised, const std::string& file) {
        return py::bytes(config_of(text, quantised, file));
      },
      py::arg("text"), py::arg("quantised"), py::arg("file"), "See storage/write/files_beside.h.");
}

}  // namespace

void bind_exports(py::module_& m) {
  py::class_<ExportRequest>(m, "ExportRequest", "What is asked for; keeps its template and its map alive.")
      .def(py::init([](const Catalog* pattern, std::string model, std::string layout, bool quantise,
                       bool strict, std::uint64_t max_file_bytes, std::map<std::string, int> file_numbers,
                       bool strict_dtypes, const WeightMap* map, bool as_template) {
             ExportRequest request;
             request.pattern = pattern;
             request.model = std::move(model);
             request.layout = std::move(layout);
             request.quantise = quantise;
             request.strict = strict;
             request.max_file_bytes = max_file_bytes;
             request.file_numbers = std::move(file_numbers);
             request.strict_dtypes = strict_dtypes;
             request.map = map;
             request.as_template = as_template;
             return request;
           }),
           py::arg("template"), py::arg("model"), py::arg("layout"), py::arg("quantise"), py::arg("strict"),
           py::arg("max_file_bytes"), py::arg("file_numbers"), py::arg("strict_dtypes") = false,
           py::arg("map") = nullptr, py::arg("as_template") = false, py::keep_alive<1, 2>(),
           py::keep_alive<1, 10>())
      .def_readwrite("start_of_names", &ExportRequest::start_of_names);
  m.def(
      "adapter_request",
      [](std::string model, std::string layout, bool text_only, const std::string& sense, double alpha,
         bool use_rslora, std::string base_model, std::optional<std::string> task_type) {
        ExportRequest request;
        request.adapter = {std::move(model),
                           std::move(layout),
                           text_only,
                           wrapper_sense_named(sense).value_or(WrapperSense::modern),
                           alpha,
                           use_rslora,
                           std::move(base_model),
                           std::move(task_type)};
        return request;
      },
      py::arg("model"), py::arg("layout"), py::arg("text_only"), py::arg("sense"), py::arg("alpha"),
      py::arg("use_rslora"), py::arg("base_model"), py::arg("task_type"),
      "The request for LoRA tensors to become an adapter.");
  m.def(
      "describe_export",
      [](const std::vector<TensorSpec>& specs, const std::string& state, const ExportRequest& request,
         const DeviceOptions& devices) {
        std::string bytes;
        {
          const py::gil_scoped_release release;
          bytes = describe_export(specs, decode_state(state), request, devices);
        }
        return py::bytes(bytes);
      },
      py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("devices") = DeviceOptions{});
  m.def(
      "state_of",
      [](const std::vector<TensorSpec>& specs, std::int64_t rank) {
        return py::bytes(encode(state_of(specs, rank)));
      },
      py::arg("specs"), py::arg("rank"),
      "What a rank has to save that holds these parts, as encode_state gives it.");
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
      .def_readonly("left_out", &PlannedExport::left_out)
      .def_readonly("is_refused", &PlannedExport::is_refused)
      .def_property_readonly("adapter_config",
                             [](const PlannedExport& p) { return py::bytes(p.adapter_config); });
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
      [](const py::bytes& share, const std::vector<TensorSpec>& specs, const std::string& state,
         const ExportRequest& request, const std::filesystem::path& directory, int threads,
         std::size_t staging_bytes, const DeviceOptions& devices) {
        const std::string bytes = share;
        const py::gil_scoped_release release;
        return run_export(bytes, specs, decode_state(state), request, directory,
                          {threads, staging_bytes, devices});
      },
      py::arg("share"), py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("directory"),
      py::arg("threads") = 0, py::arg("staging_bytes") = 0, py::arg("devices") = DeviceOptions{});
  bind_files_beside(m);
}

}  // namespace shardwright
