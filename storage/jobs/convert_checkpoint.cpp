#include <memory>

#include "storage/format/checkpoint_place.h"
#include "storage/jobs/conversion.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/jobs/publication.h"
#include "storage/seconds.h"

namespace shardwright {

namespace fs = std::filesystem;

ExportReport convert_checkpoint(const fs::path& source, const fs::path& destination, const Job& job,
                                const ConvertOptions& options) {
  const Clock::time_point begin = Clock::now();
  std::unique_ptr<Conversion> conversion;
  ExportReport report = publish_together(
      job,
      [&] {
        expect_local_path(destination);
        conversion = std::make_unique<Conversion>(source, options, job.rank, job.ranks);
        return conversion->describe();
      },
      [&] {
        return std::make_unique<Publication>(destination, conversion->request(), options.overwrite,
                                             std::vector<fs::path>{source});
      },
      [&](const std::string& told) { return conversion->write(told); });
  report.total_seconds = seconds_since(begin);
  return report;
}

}  // namespace shardwright
