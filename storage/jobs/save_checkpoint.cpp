#include "storage/jobs/save_checkpoint.h"

#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"
#include "planner/save/ownership.h"
#include "planner/save/plan_together.h"
#include "planner/save/write_results.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/format/steps.h"
#include "storage/write/shard_file.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

/// Files that are open at a time, written and on their way to the device.
constexpr std::size_t most_open_files_of_save = 32;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// torch's name of each dtype that it shares with safetensors, in which manifests speak.
const std::map<DType, std::string>& torch_names() {
  static const std::map<DType, std::string> names{
      {DType::BOOL, "bool"},
      {DType::U8, "uint8"},
      {DType::I8, "int8"},
      {DType::U16, "uint16"},
      {DType::I16, "int16"},
      {DType::U32, "uint32"},
      {DType::I32, "int32"},
      {DType::U64, "uint64"},
      {DType::I64, "int64"},
      {DType::F8_E4M3, "float8_e4m3fn"},
      {DType::F8_E5M2, "float8_e5m2"},
      {DType::F8_E8M0, "float8_e8m0fnu"},
      {DType::F16, "float16"},
      {DType::BF16, "bfloat16"},
      {DType::F32, "float32"},
      {DType::F64, "float64"},
      {DType::C64, "complex64"},
  };
  return names;
}

/// A box of a tensor that this rank holds.
struct HeldBox {
  std::size_t spec = 0;
  Box box;
};

/// What this rank holds, in the form that ranks plan by: values[i] is that of specs[i].
struct Held {
  SavedValues values;
  SavedItems items;
  std::vector<HeldBox> boxes;  // one for each item
};

Held held_by(const std::vector<TensorSpec>& specs, const DeviceOptions& devices) {
  Held held;
  Problems problems;
  std::unordered_set<std::string_view> names;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    std::string fault = fault_of(spec, true);
    const auto dtype = torch_names().find(spec.dtype);
    if (fault.empty() && dtype == torch_names().end())
      fault = "its dtype " + std::string(name_of(spec.dtype)) + " is one that torch has no tensors of";
    if (fault.empty() && spec.device != DeviceKind::cpu && calls_of(devices) == nullptr)
      fault = "expected CPU memory, found it on " + spec.device_name;
    if (fault.empty() && !names.insert(spec.fqn).second)
      fault = "expected one tensor of that name, found several";
    if (fault.empty() && spec.data == nullptr && volume(spec.local_shape) > 0) fault = "it has no memory";
    if (!fault.empty()) {
      problems.add(spec.fqn + ": " + fault);
      continue;
    }
    SavedValue value;
    value.fqn = spec.fqn;
    value.properties.dtype = dtype->second;
    value.properties.element_bytes = static_cast<std::uint32_t>(bytes_of(spec.dtype));
    value.shape = spec.global_shape;
    held.values.values.push_back(std::move(value));
    std::vector<Box> boxes;
    if (volume(spec.global_shape) == 0) boxes = {whole(spec.global_shape)};  // so that somebody names it
    for (const LocalBox& local : spec.boxes) {
      if (!is_empty(local.global)) boxes.push_back(local.global);
    }
    for (Box& box : boxes) {
      held.items.add(static_cast<std::uint32_t>(i), box.offset, box.size);
      held.boxes.push_back({i, std::move(box)});
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "this state cannot be saved:");
  return held;
}

RankState state_of(const Held& held, int rank) {
  RankState state;
  state.rank = rank;
  state.values = {encode(held.values)};
  state.parts = {{hash_of(state.values.front()), pack(held.items, held.values)}};
  return state;
}

std::vector<HeldBox> boxes_to_write(const Held& held, const LeftToOthers& left_to_others) {
  const std::vector<std::uint32_t>& left = left_to_others.at(0);
  std::vector<HeldBox> boxes;
  auto next = left.begin();
  for (std::size_t i = 0; i < held.boxes.size(); ++i) {
    if (next != left.end() && *next == i) {
      ++next;
    } else {
      boxes.push_back(held.boxes[i]);
    }
  }
  return boxes;
}

TensorInMemory memory_of(const TensorSpec& spec, const Box& box) {
  const int device = spec.device == DeviceKind::cuda ? spec.device_index : -1;
  const auto element_bytes = static_cast<std::uint64_t>(bytes_of(spec.dtype));
  if (is_empty(box)) return {nullptr, box.size, contiguous_strides(box.size), element_bytes, device};
  const TensorSpec part = part_of(spec, box);
  return {static_cast<const std::byte*>(part.data), part.local_shape, part.local_strides, element_bytes,
          device};
}

/// 12 digits that keep the files clear of those of the checkpoint that this one replaces.
std::string random_tag() {
  std::random_device random;
  const std::uint64_t number = (std::uint64_t{random()} << 32) | random();
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(number));
  return std::string(digits).substr(0, 12);
}

std::string file_name(int rank, std::size_t number, const std::string& tag) {
  char text[64];
  std::snprintf(text, sizeof text, "rank-%05d-%05zu-", rank, number);
  return text + tag + ".safetensors";
}

/// A file can have a name only once: further boxes of a tensor go to further files.
std::vector<std::vector<std::size_t>> items_of_files(const std::vector<HeldBox>& boxes) {
  std::vector<std::vector<std::size_t>> files;
  std::unordered_map<std::size_t, std::size_t> seen;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const std::size_t number = seen[boxes[i].spec]++;
    if (number == files.size()) files.emplace_back();
    files[number].push_back(i);
  }
  return files;
}

/// Writes this rank's boxes and says where they are.
WriteResults write_boxes(const std::vector<TensorSpec>& specs, const Held& held,
                         const std::vector<HeldBox>& boxes, int rank, const std::filesystem::path& directory,
                         const SaveOptions& options, SaveReport& report) {
  WriteResults results;
  results.rank = rank;
  results.values = held.values;
  results.places.resize(boxes.size());
  for (const HeldBox& held_box : boxes)
    results.items.add(static_cast<std::uint32_t>(held_box.spec), held_box.box.offset, held_box.box.size);
  const std::string tag = random_tag();
  std::vector<std::unique_ptr<ShardFile>> files;
  for (const std::vector<std::size_t>& items : items_of_files(boxes)) {
    std::vector<SourceTensor> chunks;
    std::vector<TensorInMemory> tensors;
    std::vector<std::size_t> numbers;
    for (const std::size_t item : items) {
      const TensorSpec& spec = specs[boxes[item].spec];
      numbers.push_back(chunks.size());
      chunks.push_back({spec.fqn, spec.dtype, boxes[item].box.size, boxes[item].box.offset, 0, 0, 0});
      tensors.push_back(memory_of(spec, boxes[item].box));
    }
    const std::string name = file_name(rank, files.size(), tag);
    files.push_back(std::make_unique<ShardFile>(directory / name, std::move(chunks), options.sync));
    ShardFile& file = *files.back();
    report.bytes_from_devices += file.write(numbers, tensors, options.threads, options.devices).bytes_copied;
    if (files.size() > most_open_files_of_save) files[files.size() - 1 - most_open_files_of_save]->finish();
    for (std::size_t i = 0; i < items.size(); ++i)
      results.places[items[i]] = {static_cast<std::uint32_t>(files.size() - 1), file.items()[i]};
    results.files.push_back({name, file.size(), file.header_bytes(), file.header_checksum()});
    report.bytes_written += file.size();
  }
  for (const std::unique_ptr<ShardFile>& file : files) file->finish();
  report.tensors = static_cast<std::int64_t>(boxes.size());
  report.files = static_cast<std::int64_t>(files.size());
  return results;
}

Manifest manifest_from(const std::vector<std::string>& told) {
  std::vector<WriteResults> results;
  for (const std::string& bytes : told) results.push_back(decode_results(bytes));
  std::map<std::string, std::string> dtypes;
  for (const auto& [dtype, name] : torch_names()) dtypes.emplace(name, name_of(dtype));
  return manifest_of(results, dtypes);
}

}  // namespace

SaveReport save_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                           const Job& job, const SaveOptions& options) {
  const Clock::time_point begin = Clock::now();
  SaveReport report;
  Held held;
  std::unique_ptr<PendingCheckpoint> pending;  // on rank 0; whatever fails, its end removes what was written
  const std::filesystem::path folder = round_of(
      job,
      [&] {
        expect_local_path(directory);
        held = held_by(specs, options.devices);
        return std::string();
      },
      [&](const std::vector<std::string>& all) {
        pending = std::make_unique<PendingCheckpoint>(directory, CheckpointKind::sharded, options.overwrite);
        pending->expect_free({manifest_name});
        return std::vector<std::string>(all.size(), pending->path().string());
      });

  SavePlanCache cache;
  const RankState state = state_of(held, job.rank);
  const SavePlanOfRank plan =
      plan_save_together(state, cache, [&](const std::string& mine, const Answers& answers) {
        return round_of(
            job, [&] { return mine; }, answers);
      });
  report.plan_seconds = seconds_since(begin);

  round_of(
      job,
      [&] {
        const Clock::time_point writing = Clock::now();
        const WriteResults results = write_boxes(specs, held, boxes_to_write(held, plan.left_to_others),
                                                 job.rank, folder, options, report);
        report.write_seconds = seconds_since(writing);
        return encode(results);
      },
      [&](const std::vector<std::string>& told) {
        Manifest manifest = manifest_from(told);
        std::vector<std::string> names;
        for (const SavedValue& value : cache.plan->metadata.values.values) names.push_back(value.fqn);
        expect_all(manifest, names);
        SaveOrder order = next_order(pending->final_path());
        manifest.order = order.order;
        report.warnings = std::move(order.unread);
        write_manifest(pending->path(), manifest, options.sync);
        pending->publish(manifest_name);
        return std::vector<std::string>(told.size());
      });
  report.total_seconds = seconds_since(begin);
  return report;
}

}  // namespace shardwright
