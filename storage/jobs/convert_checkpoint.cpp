#include "storage/jobs/convert_checkpoint.h"

#include <chrono>
#include <memory>

#include "storage/format/checkpoint_place.h"
#include "storage/jobs/conversion.h"
#include "storage/jobs/publication.h"

namespace shardwright {

namespace fs = std::filesystem;

ExportReport convert_checkpoint(const fs::path& source, const fs::path& destination, const Job& job,
                                const ConvertOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_ptr<Conversion> conversion;
  std::unique_ptr<Publication> publication;  // on rank 0; whatever fails, its end removes what was written
  const std::string word = round_of(
      job,
      [&] {
        expect_local_path(destination);
        conversion = std::make_unique<Conversion>(source, options, job.rank, job.ranks);
        return conversion->describe();
      },
      [&](const std::vector<std::string>& holdings) {
        publication = std::make_unique<Publication>(destination, conversion->request(), options.overwrite,
                                                    std::vector<fs::path>{source});
        return publication->plan(holdings);
      });
  ExportReport report;
  round_of(
      job,
      [&] {
        report = conversion->write(word);
        return report.row_sums;
      },
      [&](const std::vector<std::string>& row_sums) {
        publication->publish(row_sums);
        return std::vector<std::string>(row_sums.size());
      });
  report.total_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace shardwright
