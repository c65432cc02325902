#include "storage/jobs/save_checkpoint.h"

#include <memory>
#include <numeric>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/names/spec_parts.h"
#include "planner/names/torch_dtypes.h"
#include "planner/problems.h"
#include "planner/save/plan_together.h"
#include "planner/save/rank_states.h"
#include "planner/save/write_results.h"
#include "storage/files/random_number.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/format/torch_metadata.h"
#include "storage/jobs/save_order.h"
#include "storage/seconds.h"
#include "storage/write/rank_files.h"

namespace shardwright {
namespace {

/// Throws Error(mismatch) that names the tensors which cannot be read or saved.
void expect_savable(const std::vector<TensorSpec>& specs, const DeviceOptions& devices) {
  Problems problems;
  std::unordered_set<std::string_view> names;
  for (const TensorSpec& spec : specs) {
    std::string fault = fault_of(spec, true);
    if (fault.empty() && torch_name_of(spec.dtype).empty())
      fault = "its dtype " + std::string(name_of(spec.dtype)) + " is one that torch has no tensors of";
    if (fault.empty() && spec.device != DeviceKind::cpu && calls_of(devices) == nullptr)
      fault = "expected CPU memory, found it on " + spec.device_name;
    if (fault.empty() && !names.insert(spec.fqn).second)
      fault = "expected one tensor of that name, found several";
    if (fault.empty() && spec.data == nullptr && volume(spec.local_shape) > 0) fault = "it has no memory";
    if (!fault.empty()) problems.add(spec.fqn + ": " + fault);
  }
  problems.throw_if_any(ErrorKind::mismatch, "this state cannot be saved:");
}

TensorInMemory memory_of(const TensorSpec& spec, const Box& box) {
  const int device = spec.device == DeviceKind::cuda ? spec.device_index : -1;
  const auto element_bytes = static_cast<std::uint64_t>(bytes_of(spec.dtype));
  if (is_empty(box)) return {nullptr, box.size, contiguous_strides(box.size), element_bytes, device};
  const TensorSpec part = part_of(spec, box);
  return {static_cast<const std::byte*>(part.data), part.local_shape, part.local_strides, element_bytes,
          device};
}

/// Writes this rank's boxes and says where they are.
WriteResults write_boxes(const std::vector<TensorSpec>& specs, const RankState& state,
                         const LeftToOthers& left_to_others, const std::filesystem::path& directory,
                         const SaveOptions& options, SaveReport& report) {
  RankItems what;
  what.values = decode_values(state.values.front());  // a value for each spec
  std::unordered_map<std::string_view, std::uint32_t> number;
  for (const TensorSpec& spec : specs) number.emplace(spec.fqn, static_cast<std::uint32_t>(number.size()));
  std::vector<TensorInMemory> memory;
  for (const auto& [fqn, box] : boxes_to_write(state, {left_to_others, {}})) {
    const std::uint32_t value = number.at(fqn);
    what.items.add(value, box.offset, box.size);
    memory.push_back(memory_of(specs[value], box));
  }
  std::vector<std::size_t> items(memory.size());
  std::iota(items.begin(), items.end(), std::size_t{0});
  RankFilesOptions files_options;
  files_options.flush = options.sync;
  files_options.as_torch = options.format == ShardFormat::torch;
  RankFiles files(directory, state.rank, std::move(what), files_options);
  report.bytes_from_devices = files.write(items, memory, options.threads, options.devices).bytes_copied;
  WriteResults results = files.finish();
  report.tensors = static_cast<std::int64_t>(items.size());
  report.files = static_cast<std::int64_t>(results.files.size());
  for (const StoredFile& file : results.files) report.bytes_written += file.size;
  return results;
}

/// What the directory lies in; a link that it is counts as lying where the link does.
std::filesystem::path root_of(const std::filesystem::path& directory) {
  return directory.has_filename() ? directory.parent_path() : directory.parent_path().parent_path();
}

}  // namespace

SaveReport save_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                           const Job& job, const SaveOptions& options) {
  const Clock::time_point begin = Clock::now();
  SaveReport report;
  RankState state;
  std::unique_ptr<PendingCheckpoint> pending;  // on rank 0; whatever fails, its end removes what was written
  const std::filesystem::path folder = round_of(
      job,
      [&] {
        expect_local_path(directory);
        expect_savable(specs, options.devices);
        state = state_of(specs, job.rank);
        return std::string();
      },
      [&](const std::vector<std::string>& all) {
        pending = std::make_unique<PendingCheckpoint>(directory, CheckpointKind::sharded, options.overwrite);
        pending->expect_free({manifest_name});
        if (options.format == ShardFormat::torch) pending->expect_free({torch_metadata_name});
        return std::vector<std::string>(all.size(), pending->path().string());
      });

  SavePlanCache cache;
  const SavePlanOfRank plan = plan_save_together(state, cache, job);
  report.plan_seconds = seconds_since(begin);

  round_of(
      job,
      [&] {
        const Clock::time_point writing = Clock::now();
        const WriteResults results = write_boxes(specs, state, plan.left_to_others, folder, options, report);
        report.write_seconds = seconds_since(writing);
        return encode(results);
      },
      [&](const std::vector<std::string>& told) {
        std::vector<std::string> names;
        for (const SavedValue& value : cache.plan->metadata.values.values) names.push_back(value.fqn);
        Manifest manifest = manifest_of(told, names);
        SaveOrder order = next_order(pending->final_path());
        manifest.order = order.order;
        report.warnings = std::move(order.unread);
        if (options.format == ShardFormat::torch) {
          const std::string save_id = std::to_string(random_number());
          add_torch_metadata(pending->path(), manifest,
                             {pending->final_path().string(), save_id, std::nullopt}, options.sync);
        }
        write_manifest(pending->path(), manifest, options.sync);
        pending->publish(manifest_name);
        if (options.keep_last > 0) {
          for (std::string& line : keep_last_steps(root_of(directory), options.keep_last))
            report.warnings.push_back(std::move(line));
        }
        return std::vector<std::string>(told.size());
      });
  report.total_seconds = seconds_since(begin);
  return report;
}

}  // namespace shardwright
