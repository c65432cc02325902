#include "storage/write/export_writer.h"

#include <chrono>
#include <optional>
#include <utility>

#include "storage/boxes/box_reading.h"
#include "storage/files/output_files.h"
#include "storage/format/row_checksums.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_tasks.h"
#include "storage/write/made_tensors.h"
#include "storage/write/template_codes.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// The files of one export, and what is written to them. Thread-safe.
class Writer {
 public:
  Writer(const PartsToWrite& parts, const ExportLayout& layout, const std::filesystem::path& directory,
         const TemplateCodes* templates)
      : parts_(parts),
        layout_(layout),
        catalog_(layout.catalog),
        template_(templates),
        files_(directory, names_of(layout.catalog)),
        row_sums_(layout.catalog.tensors) {}

  void write_header(std::size_t file) {
    const std::string& header = layout_.headers[file];
    files_.write(file, 0, reinterpret_cast<const std::byte*>(header.data()), header.size(), "the header");
    if (layout_.has_holes) files_.reach(file, catalog_.files[file].size);
    for (const std::uint32_t tensor : layout_.copied) {
      if (catalog_.tensors[tensor].file != file) continue;
      write_whole(tensor, template_->bytes_of(catalog_.tensors[tensor].name));
    }
    for (const Made& made : layout_.made) {
      if (catalog_.tensors[made.tensor].file == file)
        write_whole(made.tensor, bytes_of_made(made, layout_, parts_.numbers));
    }
  }

  /// Writes a box of a stored tensor.
  void write_box(const EncodedBox& encoded) {
    const SourceTensor& stored = catalog_.tensors[encoded.tensor];
    if (layout_.has_checksums)
      row_sums_.add(encoded.tensor, encoded.shape, encoded.box,
                    {encoded.bytes, strides_of(encoded, stored.dtype)});
    const BoxReading place = reading_of(stored, encoded.shape, encoded.box);
    std::uint64_t runs = 1;
    for (std::uint64_t count : place.run_counts) runs *= count;
    const std::uint64_t step =
        encoded.row_bytes < 0 ? place.run_bytes : static_cast<std::uint64_t>(encoded.row_bytes);
    std::vector<std::uint64_t> index(place.run_counts.size(), 0);
    std::uint64_t offset = place.begin;
    const std::byte* bytes = encoded.bytes;
    for (std::uint64_t run = 0; run < runs; ++run, bytes += step) {
      files_.write(stored.file, offset, bytes, place.run_bytes, "tensor " + stored.name);
      for (std::size_t d = index.size(); d-- > 0;) {
        offset += place.run_strides[d];
        if (++index[d] < place.run_counts[d]) break;
        offset -= place.run_counts[d] * place.run_strides[d];
        index[d] = 0;
      }
    }
  }

  void finish(ExportReport& report) {
    const Clock::time_point written = Clock::now();
    files_.finish();
    report.sync_seconds = seconds_since(written);
    report.files = files_.count();
    report.bytes_written = files_.bytes();
    report.write_requests = files_.requests();
    report.row_sums = row_sums_.encode();
  }

 private:
  static std::vector<std::string> names_of(const Catalog& catalog) {
    std::vector<std::string> names;
    for (const SourceFile& file : catalog.files) names.push_back(file.name);
    return names;
  }

  void write_whole(std::uint32_t tensor, const std::vector<std::byte>& bytes) {
    const Shape& shape = catalog_.tensors[tensor].shape;
    write_box({tensor, shape, whole(shape), bytes.data(), -1});
  }

  const PartsToWrite& parts_;
  const ExportLayout& layout_;
  const Catalog& catalog_;
  const TemplateCodes* template_;
  OutputFiles files_;
  RowSums row_sums_;
};

}  // namespace

void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report) {
  DevicesInUse devices(tensors_on_devices(parts.specs), options.devices);
  const EncodingResources resources = resources_for(options, parts.specs, devices, plan.bytes_needed);
  std::optional<TemplateCodes> templates;
  if (layout.template_catalog != nullptr) templates.emplace(*layout.template_catalog);
  const TemplateCodes* codes = templates ? &*templates : nullptr;
  Writer writer(parts, layout, directory, codes);
  const ExportTasks work = export_tasks(
      parts, layout.catalog, plan, [&](const SourceTensor& weight) { return is_in_columns(layout, weight); },
      [&](const TensorSpec& spec) { return task_bounds(resources, layout, spec); });
  devices.run([&] {
    for (const std::uint32_t file : parts.headers) writer.write_header(file);
    const EncodingFigures done =
        encode_tasks(parts, layout, work, work.tasks, codes, devices, resources, options.progress,
                     [&](std::size_t, const EncodedBox& encoded) { writer.write_box(encoded); });
    writer.finish(report);
    report.threads = std::max(1, std::min(resources.gathering.threads, static_cast<int>(work.tasks.size())));
    report.peak_staging_bytes = done.gathered.pinned_bytes + done.staging_bytes;
    report.bytes_from_devices = done.gathered.bytes_copied;
    report.device_batches = done.gathered.batches;
    report.devices = static_cast<int>(devices.count());
    report.peak_device_bytes = done.gathered.peak_device_bytes;
    report.write_seconds = done.receiving / report.threads;
    report.encode_seconds = done.gathered.seconds / report.threads - report.write_seconds;
  });
}

}  // namespace shardwright
