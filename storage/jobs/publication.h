#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/write/export.h"
#include "storage/write/files_beside.h"

namespace shardwright {

/// What the coordinator of an export, or of an adapter, does before and after the ranks write. What is not
/// published is removed when it ends. abandon() may be called by another thread at any time.
class Publication {
 public:
  /// Makes and locks the directory, as PendingCheckpoint does, which says what it throws. `request` says what
  /// the directory is to become; what it points at must outlive this. `sources`: directories that the tensors
  /// come from; the template is another, and need not be named. At an address, ranks send the files of
  /// weights (sent_export.h).
  Publication(const std::filesystem::path& directory, const ExportRequest& request,
              std::optional<bool> overwrite, std::vector<std::filesystem::path> sources = {});

  /// Plans, and returns for each rank what write_share() is to be given. `holdings` are what the ranks have
  /// said, see describe_export(). Ranks that differ are told so, and nothing is left of the directory then.
  /// Throws as plan_export(); Error(io): EEXIST that lists files which would be replaced and may not, ENOSPC
  /// for too little space.
  std::vector<std::string> plan(const std::vector<std::string>& holdings);

  /// Writes what speaks of the ranks' files, and gives all of them their names. `row_sums` are what the ranks
  /// have told in ExportReport::row_sums. Throws Error(io), and has published nothing then.
  void publish(const std::vector<std::string>& row_sums);

  /// Does as PendingCheckpoint::abandon().
  void abandon() noexcept { pending_.abandon(); }

 private:
  std::vector<std::string> plan_once(const std::vector<std::string>& holdings);
  SizesOfObjects sent_files() const;
  void gather_files_beside();
  void expect_space() const;
  const char* commit_name() const;

  ExportRequest request_;
  PendingCheckpoint pending_;
  PlannedExport planned_;
  FileContents beside_;  ///< what is written beside the weights
};

/// Writes a rank's share, see run_export(), by what Publication::plan() has said to it; the report says what
/// has been left out, too. Throws as run_export(); Error(malformed) for bytes that are cut short.
ExportReport write_share(const std::string& told, const std::vector<TensorSpec>& specs,
                         const RankState& state, const ExportRequest& request, const ExportWriting& options,
                         const ValuesElsewhere* values = nullptr);

/// A publication in which the ranks of a job take part: all describe what they hold, rank 0 begins and plans,
/// all write their shares, rank 0 publishes. `begin` is called on rank 0 alone; `write` gets what plan() has
/// said to this rank. Throws the same on all ranks, and has published nothing then.
ExportReport publish_together(const Job& job, const std::function<std::string()>& describe,
                              const std::function<std::unique_ptr<Publication>()>& begin,
                              const std::function<ExportReport(const std::string& told)>& write);

}  // namespace shardwright
