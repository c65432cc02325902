#include "storage/jobs/publication.h"

#include <sys/statvfs.h>

#include <cerrno>
#include <utility>

#include "planner/error.h"
#include "planner/names/companions.h"
#include "planner/wire/packed_texts.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"
#include "storage/format/adapter_file.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> with_template(std::vector<fs::path> sources, const ExportRequest& request) {
  if (request.template_catalog != nullptr) sources.push_back(request.template_catalog->directory);
  return sources;
}

/// What the weights of an export are, for its config.json.
ToldQuantization told_of(const ExportLayout& layout, const Catalog* template_catalog) {
  ToldQuantization told;
  if (layout.quantize == nullptr || !has_scales(layout.catalog)) return told;
  told.how = layout.quantize;
  constexpr std::string_view ending = ".weight";
  for (const SourceTensor& tensor : layout.catalog.tensors) {
    if (!tensor.name.ends_with(ending)) continue;
    const std::string module = tensor.name.substr(0, tensor.name.size() - ending.size());
    if (!scales_of(layout.catalog, tensor.name).empty()) {
      told.encoded_modules.push_back(module);
    } else if (tensor.shape.size() == 2) {
      told.plain_modules.push_back(module);
      if (template_catalog != nullptr && !scales_of(*template_catalog, tensor.name).empty())
        told.newly_plain.push_back(module);
    }
  }
  return told;
}

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

}  // namespace

Publication::Publication(const fs::path& directory, const ExportRequest& request,
                         std::optional<bool> overwrite, std::vector<fs::path> sources)
    : request_(request),
      pending_(directory, request.adapter ? CheckpointKind::adapter : CheckpointKind::huggingface, overwrite,
               with_template(std::move(sources), request)) {}

const char* Publication::commit_name() const {
  return request_.adapter ? adapter_weights_name : hf_index_name;
}

/// The files of weights, by name.
SizesOfObjects Publication::sent_files() const {
  SizesOfObjects sizes;
  for (const SourceFile& file : planned_.layout.catalog.files) sizes[file.name] = file.size;
  return sizes;
}

/// At an address, what names of files begin with is taken for as long as the export runs.
std::vector<std::string> Publication::plan(const std::vector<std::string>& holdings) {
  std::vector<std::string> told;
  do {
    pending_.naming([&] { told = plan_once(holdings); });
  } while (!planned_.is_refused && !pending_.announce(request_.start_of_names, sent_files()));
  return told;
}

std::vector<std::string> Publication::plan_once(const std::vector<std::string>& holdings) {
  request_.start_of_names = pending_.free_start_of_names();
  planned_ = plan_export(holdings, request_, pending_.final_path());
  if (planned_.is_refused) {
    pending_.abandon();
  } else {
    gather_files_beside();
    std::vector<std::string> names;
    for (const SourceFile& file : planned_.layout.catalog.files) names.push_back(file.name);
    for (const auto& [name, content] : beside_) names.push_back(name);
    if (!request_.adapter) names.emplace_back(checksums_name);
    pending_.expect_free(names);
    if (!pending_.is_at_address()) expect_space();
  }
  std::vector<std::string> told;
  for (const std::string& share : planned_.shares) {
    std::vector<std::string> texts{share, pending_.path().string(), request_.start_of_names};
    texts.insert(texts.end(), planned_.left_out.begin(), planned_.left_out.end());
    told.push_back(pack_texts(texts));
  }
  return told;
}

void Publication::publish(const std::vector<std::string>& row_sums) {
  std::vector<std::string> names;
  for (const auto& [name, content] : beside_) {
    pending_.write(name, content);
    if (name != commit_name()) names.push_back(name);
  }
  if (!request_.adapter)
    pending_.write(checksums_name, checksums_of_export(planned_.layout, row_sums, pending_.path(), names));
  pending_.publish(commit_name(), sent_files());
}

/// A file of somebody's that has the content already is left as it is. Without a template, what an earlier
/// export has beside its weights is kept, and says the truth about the new ones.
void Publication::gather_files_beside() {
  if (request_.adapter) {
    beside_ = {{adapter_config_name, planned_.adapter_config}};
    return;
  }
  const ToldQuantization told = told_of(planned_.layout, request_.template_catalog);
  FileContents files = request_.template_catalog == nullptr
                           ? kept_files(pending_.final_path(), pending_.own_beside(), told)
                           : template_files(request_.template_catalog->directory, told,
                                            planned_.layout.template_catalog != nullptr);
  for (auto& [name, content] : files) {
    if (pending_.may_replace(name) || !has_content(pending_.final_path() / name, content))
      beside_.emplace(name, std::move(content));
  }
  beside_.insert_or_assign(hf_index_name, hf_index_of(planned_.layout));
}

void Publication::expect_space() const {
  struct statvfs system {};
  if (uninterrupted([&] { return ::statvfs(pending_.path().c_str(), &system); }) != 0)
    return;  // what the system does not tell, writing finds
  const std::uint64_t free = std::uint64_t{system.f_bavail} * system.f_frsize;
  const std::uint64_t needed = planned_.layout.total_size;
  if (free >= needed) return;
  throw Error(ErrorKind::io,
              printable(pending_.final_path().native()) + ": expected " + std::to_string(needed) +
                  " bytes of free space, found " + std::to_string(free) + "; nothing has been written",
              ENOSPC);
}

ExportReport write_share(const std::string& told, const std::vector<TensorSpec>& specs,
                         const RankState& state, const ExportRequest& request, const ExportWriting& options,
                         const ValuesElsewhere* values) {
  const std::vector<std::string> texts = unpack_texts(told);
  if (texts.size() < 3) throw Error(ErrorKind::malformed, "what rank 0 has told of an export is cut short");
  ExportRequest named = request;
  named.start_of_names = texts[2];
  ExportReport report = run_export(texts[0], specs, state, named, texts[1], options, values);
  report.left_out.assign(texts.begin() + 3, texts.end());
  return report;
}

ExportReport publish_together(const Job& job, const std::function<std::string()>& describe,
                              const std::function<std::unique_ptr<Publication>()>& begin,
                              const std::function<ExportReport(const std::string& told)>& write) {
  std::unique_ptr<Publication> publication;  // on rank 0; whatever fails, its end removes what was written
  const std::string told = round_of(job, describe, [&](const std::vector<std::string>& holdings) {
    publication = begin();
    return publication->plan(holdings);
  });
  ExportReport report;
  round_of(
      job,
      [&] {
        report = write(told);
        return report.row_sums;
      },
      [&](const std::vector<std::string>& row_sums) {
        publication->publish(row_sums);
        return std::vector<std::string>(row_sums.size());
      });
  return report;
}

}  // namespace shardwright
