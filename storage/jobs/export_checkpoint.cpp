#include "storage/jobs/export_checkpoint.h"

#include <iterator>
#include <memory>
#include <utility>

#include "planner/names/tied_heads.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/read_catalog.h"
#include "storage/jobs/publication.h"
#include "storage/seconds.h"

namespace shardwright {
namespace fs = std::filesystem;

ExportReport export_checkpoint(const std::vector<TensorSpec>& all, const fs::path& directory, const Job& job,
                               const ExportOptions& options) {
  const Clock::time_point begin = Clock::now();
  std::vector<TensorSpec> specs = all;
  std::vector<std::string> tied;
  if (options.template_directory.empty()) tied = take_tied_heads(specs);
  Catalog template_catalog;
  ExportRequest request;
  RankState state;
  ExportReport report = publish_together(
      job,
      [&] {
        expect_local_path(directory);
        request.model = options.model;
        request.layout = options.layout;
        request.set_quantization(options.quantization, options.quantized_weights);
        request.strict = options.strict;
        request.strict_dtypes = options.strict_dtypes;
        request.max_file_bytes = options.max_file_bytes;
        if (!options.template_directory.empty()) {
          template_catalog = read_catalog(options.template_directory, options.threads);
          request.template_catalog = &template_catalog;
        }
        state = state_of(specs, job.rank);
        return describe_export(specs, state, request, options.devices);
      },
      [&] { return std::make_unique<Publication>(directory, request, options.overwrite); },
      [&](const std::string& told) {
        return write_share(told, specs, state, request,
                           {options.threads, options.staging_bytes, options.devices, nullptr});
      });
  std::move(tied.begin(), tied.end(), std::back_inserter(report.left_out));
  report.total_seconds = seconds_since(begin);
  return report;
}

}  // namespace shardwright
