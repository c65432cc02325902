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
#include "storage/jobs/publication.h"
#include "storage/write/export.h"
#include "storage/write/files_beside.h"

namespace py = pybind11;

namespace shardwright {
namespace {

std::vector<py::bytes> as_bytes(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

void bind_files_beside(py::module_& m) {
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
      .def(py::init([](const Catalog* template_catalog, std::string model, std::string layout, bool quantise,
                       bool strict, std::uint64_t max_file_bytes, std::map<std::string, int> file_numbers,
                       bool strict_dtypes, const WeightMap* map, bool as_template) {
             ExportRequest request;
             request.template_catalog = template_catalog;
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
           py::keep_alive<1, 10>());
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
  m.def(
      "plan_export",
      [](const std::vector<std::string>& holdings, const ExportRequest& request,
         const std::filesystem::path& directory) {
        return as_bytes(plan_export(holdings, request, directory).shares);
      },
      py::arg("holdings"), py::arg("request"), py::arg("directory"), "The shares of the ranks.");
  py::class_<Publication>(m, "Publication", "See storage/jobs/publication.h.")
      .def(py::init<const std::filesystem::path&, const ExportRequest&, std::optional<bool>,
                    std::vector<std::filesystem::path>>(),
           py::arg("directory"), py::arg("request"), py::arg("overwrite") = py::none(),
           py::arg("sources") = std::vector<std::filesystem::path>(), py::keep_alive<1, 3>(),
           py::call_guard<py::gil_scoped_release>())
      .def(
          "plan",
          [](Publication& publication, const std::vector<std::string>& holdings) {
            std::vector<std::string> told;
            {
              const py::gil_scoped_release release;
              told = publication.plan(holdings);
            }
            return as_bytes(told);
          },
          py::arg("holdings"))
      .def("publish", &Publication::publish, py::arg("row_sums"), py::call_guard<py::gil_scoped_release>())
      .def("abandon", &Publication::abandon, py::call_guard<py::gil_scoped_release>());
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
      .def_readonly("left_out", &ExportReport::left_out)
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
      "write_share",
      [](const std::string& told, const std::vector<TensorSpec>& specs, const std::string& state,
         const ExportRequest& request, int threads, std::size_t staging_bytes, const DeviceOptions& devices,
         Progress* progress) {
        return write_share(told, specs, decode_state(state), request,
                           {threads, staging_bytes, devices, progress});
      },
      py::arg("told"), py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("threads") = 0,
      py::arg("staging_bytes") = 0, py::arg("devices") = DeviceOptions{}, py::arg("progress") = nullptr,
      py::call_guard<py::gil_scoped_release>(), "Writes what Publication.plan has said to this rank.");
  bind_files_beside(m);
}

}  // namespace shardwright
