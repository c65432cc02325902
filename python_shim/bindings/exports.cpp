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
#include "python_shim/bindings/sending.h"
#include "storage/format/checksums_file.h"
#include "storage/jobs/conversion.h"
#include "storage/jobs/publication.h"
#include "storage/jobs/sent_export.h"
#include "storage/write/export.h"
#include "storage/write/export_words.h"
#include "storage/write/files_beside.h"
#include "storage/write/written_beside.h"

namespace py = pybind11;

namespace shardwright {
namespace {

std::vector<py::bytes> as_bytes(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

void bind_files_beside(py::module_& m) {
  m.def(
      "config_of",
      [](const std::string& text, const std::string& quantization, std::vector<std::string> plain_modules,
         const std::string& file) {
        return py::bytes(config_of(text, {quantization_named(quantization), std::move(plain_modules)}, file));
      },
      py::arg("text"), py::arg("quantization"), py::arg("plain_modules"), py::arg("file"),
      "See storage/write/files_beside.h.");
  m.def("expect_replaceable", &expect_replaceable, py::arg("folder"), py::arg("contents"),
        py::arg("overwrite"), py::arg("advice"), py::call_guard<py::gil_scoped_release>(),
        "See storage/write/written_beside.h.");
  m.def("write_beside", &write_beside, py::arg("folder"), py::arg("contents"),
        py::call_guard<py::gil_scoped_release>(), "See storage/write/written_beside.h.");
  m.def("expect_asked_alike", &expect_asked_alike, py::arg("words_of_ranks"),
        "Raises PlanError that names the ranks whose arguments, in words, are not those of rank 0.");
}

void bind_conversion(py::module_& m) {
  py::class_<Conversion>(m, "Conversion", "One rank's part of converting a checkpoint.")
      .def(py::init([](const std::filesystem::path& source, std::string quantization,
                       std::vector<std::string> quantized_weights, std::string model, std::string layout,
                       std::uint64_t max_file_bytes, int threads, std::size_t buffer_bytes, int rank,
                       int ranks, const std::optional<std::map<std::string, std::string>>& saved_weights,
                       const std::shared_ptr<Catalog>& catalog, const Catalog* template_catalog,
                       const WeightMap* map) {
             ConvertOptions options;
             options.quantization = std::move(quantization);
             options.quantized_weights = std::move(quantized_weights);
             options.model = std::move(model);
             options.layout = std::move(layout);
             options.max_file_bytes = max_file_bytes;
             options.threads = threads;
             options.buffer_bytes = buffer_bytes;
             if (!saved_weights) return std::make_unique<Conversion>(source, options, rank, ranks);
             std::vector<SavedWeight> weights;
             for (const auto& [fqn, stored] : *saved_weights) weights.push_back({fqn, stored});
             return std::make_unique<Conversion>(
                 catalog ? *catalog : catalog_of_training(source, weights, threads), weights, options, rank,
                 ranks, template_catalog, map);
           }),
           py::arg("source"), py::arg("quantization"), py::arg("quantized_weights"), py::arg("model"),
           py::arg("layout"), py::arg("max_file_bytes"), py::arg("threads"), py::arg("buffer_bytes"),
           py::arg("rank"), py::arg("ranks"), py::arg("saved_weights") = py::none(),
           py::arg("catalog") = py::none(), py::arg("template") = nullptr, py::arg("map") = nullptr,
           py::keep_alive<1, 14>(), py::keep_alive<1, 15>(), py::call_guard<py::gil_scoped_release>(),
           "`saved_weights`: of a checkpoint of training, by their names for the model those in the saved "
           "state dict. `catalog`: what the checkpoint has stored, where C++ cannot read it.");
  m.def(
      "convert_together",
      [](int rank, int ranks, const py::function& round, const py::function& begin, const py::function& place,
         std::optional<bool> overwrite) {
        const Job job = job_of(rank, ranks, round);
        py::object held;
        const Conversion* conversion = nullptr;
        const py::gil_scoped_release released;
        return publish_together(
            job,
            [&] {
              {
                const py::gil_scoped_acquire acquired;
                held = begin();
                conversion = held.cast<const Conversion*>();
              }
              return conversion->describe();
            },
            [&] {
              std::pair<std::filesystem::path, std::vector<std::filesystem::path>> found;
              {
                const py::gil_scoped_acquire acquired;
                found = place().cast<decltype(found)>();
              }
              return std::make_unique<Publication>(found.first, conversion->request(), overwrite,
                                                   found.second);
            },
            [&](const std::string& told) { return conversion->write(told); });
      },
      py::arg("rank"), py::arg("ranks"), py::arg("round"), py::arg("begin"), py::arg("place"),
      py::arg("overwrite"),
      "Publishes what the ranks convert. `begin` gives this rank's Conversion; `place`, called on rank 0 "
      "alone, the directory and those that the source is in.");
}

void bind_requests(py::module_& m) {
  py::class_<ExportRequest>(m, "ExportRequest", "What is asked for; keeps its template and its map alive.")
      .def(py::init([](const Catalog* template_catalog, std::string model, std::string layout,
                       const std::string& quantization, std::vector<std::string> quantized_weights,
                       bool strict, std::uint64_t max_file_bytes, std::map<std::string, int> file_numbers,
                       bool strict_dtypes, const WeightMap* map) {
             ExportRequest request;
             request.template_catalog = template_catalog;
             request.model = std::move(model);
             request.layout = std::move(layout);
             request.set_quantization(quantization, std::move(quantized_weights));
             request.strict = strict;
             request.max_file_bytes = max_file_bytes;
             request.file_numbers = std::move(file_numbers);
             request.strict_dtypes = strict_dtypes;
             request.map = map;
             return request;
           }),
           py::arg("template"), py::arg("model"), py::arg("layout"), py::arg("quantization"),
           py::arg("quantized_weights"), py::arg("strict"), py::arg("max_file_bytes"),
           py::arg("file_numbers"), py::arg("strict_dtypes") = false, py::arg("map") = nullptr,
           py::keep_alive<1, 2>(), py::keep_alive<1, 11>());
  m.def(
      "quantizations",
      [] {
        std::vector<std::string> names;
        for (const Quantization& one : quantizations()) names.emplace_back(one.name);
        return names;
      },
      "The names by which weights can be quantized: see planner/save/quantization.h.");
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
}

void bind_planning(py::module_& m) {
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
}

void bind_publication(py::module_& m) {
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
}

void bind_sent_export(py::module_& m) {
  py::class_<SentExport>(m, "SentExport", "See storage/jobs/sent_export.h.")
      .def(py::init([](const std::string& told, const std::vector<TensorSpec>& specs,
                       const std::string& state, const ExportRequest& request, int threads,
                       std::size_t staging_bytes, const DeviceOptions& devices, Progress* progress,
                       std::size_t rank, std::size_t ranks, const py::object& send) {
             const SendPart send_part = send_by(send);
             const py::gil_scoped_release release;
             return std::make_unique<SentExport>(told, specs, decode_state(state), request,
                                                 ExportWriting{threads, staging_bytes, devices, progress},
                                                 rank, ranks, send_part);
           }),
           py::arg("told"), py::arg("specs"), py::arg("state"), py::arg("request"), py::arg("threads"),
           py::arg("staging_bytes"), py::arg("devices"), py::arg("progress"), py::arg("rank"),
           py::arg("ranks"), py::arg("send"), py::keep_alive<1, 5>())
      .def_property_readonly("rounds", &SentExport::rounds)
      .def("encode", &SentExport::encode, py::arg("round"), py::call_guard<py::gil_scoped_release>())
      .def("messages",
           [](SentExport& sent) {
             std::vector<py::bytearray> messages;
             for (const std::string& message : sent.messages()) messages.emplace_back(message);
             return messages;
           })
      .def(
          "receive",
          [](SentExport& sent, std::size_t from, std::uintptr_t address, std::size_t bytes) {
            sent.receive(from, {reinterpret_cast<const std::byte*>(address),  // NOLINT
                                bytes});
          },
          py::arg("rank"), py::arg("address"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
      .def("finish", &SentExport::finish, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("peak_bytes_to_send", &SentExport::peak_bytes_to_send);
}

void bind_writing(py::module_& m) {
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
}

}  // namespace

void bind_exports(py::module_& m) {
  bind_requests(m);
  bind_planning(m);
  bind_publication(m);
  bind_sent_export(m);
  bind_writing(m);
  bind_files_beside(m);
  bind_conversion(m);
}

}  // namespace shardwright
