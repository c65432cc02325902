#include "storage/write/export_writer.h"

#include <optional>
#include <string>
#include <vector>

#include "storage/files/output_files.h"
#include "storage/format/row_checksums.h"
#include "storage/seconds.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_tasks.h"
#include "storage/write/template_codes.h"
#include "storage/write/write_boxes.h"

namespace shardwright {
namespace {

std::vector<std::string> names_of(const Catalog& catalog) {
  std::vector<std::string> names;
  for (const SourceFile& file : catalog.files) names.push_back(file.name);
  return names;
}

}  // namespace

void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report) {
  DevicesInUse devices(tensors_on_devices(parts.specs), options.devices);
  const EncodingResources resources = resources_for(options, parts.specs, devices, plan.bytes_needed);
  std::optional<TemplateCodes> templates;
  if (layout.template_catalog != nullptr) templates.emplace(*layout.template_catalog);
  const TemplateCodes* codes = templates ? &*templates : nullptr;
  OutputFiles files(directory, names_of(layout.catalog));
  RowSums sums(layout.catalog.tensors);
  const WriteBytes write = [&](std::size_t file, std::uint64_t offset, const std::byte* bytes,
                               std::uint64_t count,
                               const std::string& what) { files.write(file, offset, bytes, count, what); };
  const ExportTasks work = export_tasks(
      parts, layout.catalog, plan, [&](const SourceTensor& weight) { return is_in_columns(layout, weight); },
      [&](const TensorSpec& spec) { return task_bounds(resources, layout, spec); });
  devices.run([&] {
    for (const std::uint32_t file : parts.headers) {
      write_header(file, layout, codes, parts.numbers, sums, write);
      if (layout.has_holes) files.reach(file, layout.catalog.files[file].size);
    }
    const EncodingFigures done = encode_tasks(
        parts, layout, work, work.tasks, codes, devices, resources, options.progress,
        [&](std::size_t, const EncodedBox& encoded) { write_box(encoded, layout, sums, write); });
    const Clock::time_point written = Clock::now();
    files.finish();
    report.sync_seconds = seconds_since(written);
    report.files = files.count();
    report.bytes_written = files.bytes();
    report.write_requests = files.requests();
    report.row_sums = sums.encode();
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
