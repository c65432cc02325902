#include "storage/jobs/export_checkpoint.h"

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/output_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/format/read_catalog.h"
#include "storage/jobs/packed_texts.h"
#include "storage/write/export.h"
#include "storage/write/files_beside.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

/// Whether there is a file of this name that has that content already.
bool has_content(const fs::path& path, const std::string& content) {
  const std::optional<struct stat> target = target_at(path);
  if (!target || !S_ISREG(target->st_mode)) return false;
  const InputFile file(path);
  if (file.size() != content.size()) return false;
  std::string found(content.size(), '\0');
  file.read(0, found.data(), found.size());
  return found == content;
}

void write_beside(const fs::path& path, const std::string& content) {
  std::error_code code;
  fs::create_directories(path.parent_path(), code);  // where that fails, opening the file tells
  write_whole_file(path, content);
}

/// What rank 0 does before and after the ranks write.
class Publication {
 public:
  Publication(const fs::path& directory, const ExportOptions& options)
      : pending_(directory, CheckpointKind::huggingface, options.overwrite, sources_of(options)),
        template_(options.template_directory) {}

  /// The plan, with a share for each rank. Throws where it cannot be written.
  const PlannedExport& plan(const std::vector<std::string>& holdings, ExportRequest request) {
    request.start_of_names = pending_.free_start_of_names();
    start_of_names_ = request.start_of_names;
    planned_ = plan_export(holdings, request, pending_.final_path());
    gather_files_beside();
    std::vector<std::string> names{checksums_name};
    for (const SourceFile& file : planned_.layout.catalog.files) names.push_back(file.name);
    for (const auto& [name, content] : beside_) names.push_back(name);
    pending_.expect_free(names);
    expect_space();
    return planned_;
  }

  /// What a rank has to know: its share, where to write, and what is left out.
  std::string word_for(std::size_t rank) const {
    std::vector<std::string> texts{planned_.shares.at(rank), pending_.path().string(), start_of_names_};
    texts.insert(texts.end(), planned_.left_out.begin(), planned_.left_out.end());
    return pack_texts(texts);
  }

  void publish(const std::vector<std::string>& row_sums) {
    std::vector<std::string> names;
    for (const auto& [name, content] : beside_) {
      write_beside(pending_.path() / name, content);
      if (name != hf_index_name) names.push_back(name);
    }
    write_beside(pending_.path() / checksums_name,
                 checksums_of_export(planned_.layout, row_sums, pending_.path(), names));
    pending_.publish(hf_index_name);
  }

 private:
  static std::vector<fs::path> sources_of(const ExportOptions& options) {
    if (options.template_directory.empty()) return {};
    return {options.template_directory};
  }

  /// A file of somebody's that has the content already is left as it is. Without a template, what an earlier
  /// export has beside its weights is kept, and says the truth about the new ones.
  void gather_files_beside() {
    const bool quantised = has_scales(planned_.layout.catalog);
    FileContents files = template_.empty()
                             ? kept_files(pending_.final_path(), pending_.own_beside(), quantised)
                             : template_files(template_, quantised, planned_.layout.pattern != nullptr);
    for (auto& [name, content] : files) {
      if (pending_.may_replace(name) || !has_content(pending_.final_path() / name, content))
        beside_.emplace(name, std::move(content));
    }
    beside_.insert_or_assign(hf_index_name, planned_.layout.index);
  }

  void expect_space() const {
    std::error_code code;
    const fs::space_info space = fs::space(pending_.path(), code);
    const std::uint64_t needed = planned_.layout.total_size;
    if (code || space.available >= needed) return;  // what the system does not tell, writing finds
    throw Error(ErrorKind::io,
                printable(pending_.final_path().native()) + ": expected " + std::to_string(needed) +
                    " bytes of free space, found " + std::to_string(space.available) +
                    "; nothing has been written",
                ENOSPC);
  }

  PendingCheckpoint pending_;
  fs::path template_;
  std::string start_of_names_;
  PlannedExport planned_;
  FileContents beside_;
};

}  // namespace

ExportReport export_checkpoint(const std::vector<TensorSpec>& specs, const fs::path& directory,
                               const Job& job, const ExportOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  Catalog pattern;
  ExportRequest request;
  RankState state;
  std::unique_ptr<Publication> publication;  // on rank 0; whatever fails, its end removes what was written
  const std::string word = round_of(
      job,
      [&] {
        expect_local_path(directory);
        request.model = options.model;
        request.layout = options.layout;
        request.quantise = options.quantise;
        request.as_template = options.as_template;
        request.strict = options.strict;
        request.strict_dtypes = options.strict_dtypes;
        request.max_file_bytes = options.max_file_bytes;
        if (!options.template_directory.empty()) {
          pattern = read_catalog(options.template_directory, options.threads);
          request.pattern = &pattern;
        }
        state = state_of(specs, job.rank);
        return describe_export(specs, state, request, options.devices);
      },
      [&](const std::vector<std::string>& holdings) {
        publication = std::make_unique<Publication>(directory, options);
        publication->plan(holdings, request);
        std::vector<std::string> words;
        for (std::size_t rank = 0; rank < holdings.size(); ++rank)
          words.push_back(publication->word_for(rank));
        return words;
      });

  ExportReport report;
  round_of(
      job,
      [&] {
        const std::vector<std::string> texts = unpack_texts(word);
        if (texts.size() < 3)
          throw Error(ErrorKind::malformed, "what rank 0 has told of an export is cut short");
        request.start_of_names = texts[2];
        report = run_export(texts[0], specs, state, request, texts[1],
                            {options.threads, options.staging_bytes, options.devices});
        report.left_out.assign(texts.begin() + 3, texts.end());
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
