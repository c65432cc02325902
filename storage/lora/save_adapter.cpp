#include "storage/lora/save_adapter.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>

#include "planner/error.h"
#include "storage/files/output_file.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/lora/adapter_file.h"

namespace shardwright {
namespace {

/// Rank 0's word to a rank: where to write, and its share.
std::string word_of(const std::filesystem::path& folder, const std::string& share) {
  return std::to_string(folder.native().size()) + ":" + folder.native() + share;
}

std::pair<std::filesystem::path, std::string> parsed(const std::string& word) {
  const std::size_t colon = word.find(':');
  const bool is_number =
      colon != std::string::npos && colon > 0 && colon < 10 && word.find_first_not_of("0123456789") == colon;
  const std::size_t length = is_number ? std::stoul(word.substr(0, colon)) : 0;
  if (!is_number || length > word.size() - colon - 1)
    throw Error(ErrorKind::malformed, "what rank 0 has told of saving an adapter is cut short");
  return {word.substr(colon + 1, length), word.substr(colon + 1 + length)};
}

void write_flushed(const std::filesystem::path& path, const std::string& content) {
  OutputFile file(path, content.size(), true);
  file.write(0, reinterpret_cast<const std::byte*>(content.data()), content.size(), "its content");
  file.finish();
}

}  // namespace

ExportReport save_adapter(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                          const AdapterAsked& asked, const Job& job, std::optional<bool> overwrite,
                          const ExportWriting& writing) {
  std::vector<TensorSpec> lora;
  std::copy_if(specs.begin(), specs.end(), std::back_inserter(lora),
               [](const TensorSpec& spec) { return lora_name_of(spec.fqn).has_value(); });
  ExportRequest request;
  request.adapter = asked;
  std::unique_ptr<PendingCheckpoint> pending;  // on rank 0; its end removes what is not published
  PlannedExport planned;
  const std::string word = round_of(
      job, [&] { return describe_export(lora, request, writing.devices); },
      [&](const std::vector<std::string>& holdings) {
        pending = std::make_unique<PendingCheckpoint>(directory, CheckpointKind::adapter, overwrite);
        planned = plan_export(holdings, request, pending->final_path());
        pending->expect_free({adapter_weights_name, adapter_config_name});
        std::vector<std::string> words;
        for (const std::string& share : planned.shares) words.push_back(word_of(pending->path(), share));
        return words;
      });
  ExportReport report;
  round_of(
      job,
      [&] {
        const auto [folder, share] = parsed(word);
        report = run_export(share, lora, request, folder, writing);
        return std::string();
      },
      [&](const std::vector<std::string>& done) {
        write_flushed(pending->path() / adapter_config_name, planned.adapter_config);
        pending->publish(adapter_weights_name);
        return done;
      });
  return report;
}

}  // namespace shardwright
