#include "storage/jobs/sent_export.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "planner/wire/packed_texts.h"
#include "storage/boxes/box_reading.h"
#include "storage/files/printable.h"
#include "storage/format/row_checksums.h"
#include "storage/seconds.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_share.h"
#include "storage/write/export_tasks.h"
#include "storage/write/template_codes.h"
#include "storage/write/write_boxes.h"

namespace shardwright {
namespace {

/// Bytes of a file that are encoded in a round.
constexpr std::uint64_t window_bytes = std::uint64_t{64} << 20;

/// Where a message's bytes belong.
struct Place {
  std::uint64_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t count = 0;
};

}  // namespace

struct SentExport::Work {
  SharedExport share;
  LoadPlan plan;
  ExportWriting options;
  std::size_t rank;
  std::size_t ranks;
  std::optional<RowSums> row_sums = std::nullopt;
  std::optional<TemplateCodes> templates = std::nullopt;
  std::unique_ptr<DevicesInUse> devices = nullptr;
  EncodingResources resources = {};
  ExportTasks tasks = {};
  std::vector<std::size_t> ends_of_rounds = {};           // of tasks, which lie in their order
  std::vector<std::size_t> first_rounds = {};             // of each `ranks` files
  std::vector<std::unique_ptr<Upload>> uploads = {};      // by file; null: another rank's
  std::vector<std::string> outgoing = {};                 // by rank
  std::vector<std::unique_ptr<std::mutex>> mutexes = {};  // of those
  std::uint64_t peak_outgoing = 0;
  ExportReport report = {};
  Clock::time_point begin = Clock::now();

  const ExportLayout& layout() const { return share.described.layout; }
  const Catalog& catalog() const { return share.described.layout.catalog; }
  std::size_t owner_of(std::size_t file) const { return file % ranks; }

  void begin_uploads(const SendPart& send) {
    uploads.resize(catalog().files.size());
    for (std::size_t file = rank; file < uploads.size(); file += ranks)
      uploads[file] = std::make_unique<Upload>(catalog().files[file].name, catalog().files[file].size, send);
    outgoing.resize(ranks);
    for (std::size_t r = 0; r < ranks; ++r) mutexes.push_back(std::make_unique<std::mutex>());
  }

  std::uint64_t first_byte(const EncodedBox& encoded) const {
    return reading_of(catalog().tensors[encoded.tensor], encoded.shape, encoded.box).begin;
  }

  /// The round in which a task is encoded: that of the first of its bytes in the order of rounds, so that at
  /// the end of a round all before its windows is there.
  std::size_t round_of(const ExportTask& task) const {
    const BoxesOfTask boxes = boxes_of(task, tasks, share.parts, layout());
    std::size_t round = std::size_t(-1);
    const auto look = [&](const EncodedBox& box) {
      if (is_empty(box.box)) return;
      const std::size_t file = catalog().tensors[box.tensor].file;
      const auto window = static_cast<std::size_t>(first_byte(box) / window_bytes);
      round = std::min(round, first_rounds[file / ranks] + window);
    };
    look(boxes.elements);
    if (boxes.scales) look(*boxes.scales);
    return round == std::size_t(-1) ? 0 : round;
  }

  void count_rounds() {
    std::size_t rounds = 0;
    const std::vector<SourceFile>& files = catalog().files;
    for (std::size_t first = 0; first < files.size(); first += ranks) {
      std::uint64_t longest = 0;
      for (std::size_t file = first; file < std::min(first + ranks, files.size()); ++file)
        longest = std::max(longest, files[file].size);
      first_rounds.push_back(rounds);
      rounds += static_cast<std::size_t>((longest + window_bytes - 1) / window_bytes);
    }
    ends_of_rounds.assign(rounds, 0);
  }

  void order_tasks() {
    std::vector<std::tuple<std::size_t, std::uint64_t, std::size_t>> order;  // round, first byte, number
    for (std::size_t t = 0; t < tasks.tasks.size(); ++t) {
      const ExportTask& task = tasks.tasks[t];
      const EncodedBox elements = boxes_of(task, tasks, share.parts, layout()).elements;
      order.emplace_back(round_of(task), is_empty(elements.box) ? 0 : first_byte(elements), t);
    }
    std::sort(order.begin(), order.end());
    std::vector<ExportTask> ordered;
    for (const auto& [round, byte, number] : order) {
      ordered.push_back(std::move(tasks.tasks[number]));
      ++ends_of_rounds[round];
    }
    tasks.tasks = std::move(ordered);
    for (std::size_t round = 1; round < ends_of_rounds.size(); ++round)
      ends_of_rounds[round] += ends_of_rounds[round - 1];
  }

  /// Gives bytes of a file to its upload, or to the message for its owner.
  void write_bytes(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count) {
    const std::size_t owner = owner_of(file);
    if (owner == rank) return uploads[file]->write(offset, bytes, count);
    const Place place{file, offset, count};
    const std::lock_guard lock(*mutexes[owner]);
    std::string& message = outgoing[owner];
    message.append(reinterpret_cast<const char*>(&place), sizeof place);
    message.append(reinterpret_cast<const char*>(bytes), count);
  }
};

SentExport::SentExport(const std::string& told, const std::vector<TensorSpec>& specs, const RankState& state,
                       const ExportRequest& request, const ExportWriting& options, std::size_t rank,
                       std::size_t ranks, const SendPart& send) {
  if (ranks == 0 || rank >= ranks) {
    throw Error(ErrorKind::argument, "rank " + std::to_string(rank) + " of " + std::to_string(ranks) +
                                         ": expected one below the number of ranks");
  }
  const std::vector<std::string> texts = unpack_texts(told);
  if (texts.size() < 3) throw Error(ErrorKind::malformed, "what rank 0 has told of an export is cut short");
  ExportRequest named = request;
  named.start_of_names = texts[2];
  SharedExport share = shared_export(texts[0], specs, state, named, "");
  if (share.described.layout.has_holes)
    throw Error(ErrorKind::argument, "an adapter's file is not sent elsewhere: save it to a directory");
  LoadPlan plan = plan_with_memory(share, specs, options.devices);
  // In place: it cannot be moved.
  work_ = std::unique_ptr<Work>(new Work{std::move(share), std::move(plan), options, rank, ranks});
  Work& work = *work_;
  const ExportLayout& layout = work.layout();
  work.report.rounded = work.share.described.rounded;
  work.report.left_out.assign(texts.begin() + 3, texts.end());
  work.report.tensors = work.plan.tensors;
  work.report.bytes_needed = work.plan.bytes_needed;
  for (const std::uint32_t file : work.share.parts.headers)
    work.report.bytes_needed += layout.headers[file].size();
  work.row_sums.emplace(layout.catalog.tensors);
  if (layout.template_catalog != nullptr) work.templates.emplace(*layout.template_catalog);
  const std::vector<TensorSpec>& parts = work.share.parts.specs;
  work.devices = std::make_unique<DevicesInUse>(tensors_on_devices(parts), options.devices);
  work.resources = resources_for(options, parts, *work.devices, work.plan.bytes_needed);
  work.tasks = export_tasks(
      work.share.parts, layout.catalog, work.plan,
      [&](const SourceTensor& weight) { return is_in_columns(layout, weight); },
      [&](const TensorSpec& spec) { return task_bounds(work.resources, layout, spec); });
  work.begin_uploads(send);
  work.count_rounds();
  work.order_tasks();
  work.report.threads =
      std::max(1, std::min(work.resources.gathering.threads, static_cast<int>(work.tasks.tasks.size())));
  work.report.plan_seconds = seconds_since(work.begin);
}

SentExport::~SentExport() = default;

std::size_t SentExport::rounds() const { return work_->ends_of_rounds.size(); }

void SentExport::encode(std::size_t round) {
  Work& work = *work_;
  const std::size_t begin = round == 0 ? 0 : work.ends_of_rounds.at(round - 1);
  const std::span<const ExportTask> tasks(work.tasks.tasks.data() + begin,
                                          work.ends_of_rounds.at(round) - begin);
  const TemplateCodes* templates = work.templates ? &*work.templates : nullptr;
  const WriteBytes write = [&](std::size_t file, std::uint64_t offset, const std::byte* bytes,
                               std::uint64_t count,
                               const std::string&) { work.write_bytes(file, offset, bytes, count); };
  for (const std::uint32_t file : work.share.parts.headers) {
    if (work.first_rounds.at(file / work.ranks) == round)
      write_header(file, work.layout(), templates, work.share.parts.numbers, *work.row_sums, write);
  }
  ExportReport& report = work.report;
  EncodingFigures done;
  work.devices->run([&] {
    done = encode_tasks(work.share.parts, work.layout(), work.tasks, tasks, templates, *work.devices,
                        work.resources, work.options.progress, [&](std::size_t, const EncodedBox& encoded) {
                          write_box(encoded, work.layout(), *work.row_sums, write);
                        });
  });
  std::uint64_t outgoing = 0;
  for (const std::string& message : work.outgoing) outgoing += message.size();
  work.peak_outgoing = std::max(work.peak_outgoing, outgoing);
  report.peak_staging_bytes =
      std::max(report.peak_staging_bytes, done.gathered.pinned_bytes + done.staging_bytes);
  report.bytes_from_devices += done.gathered.bytes_copied;
  report.device_batches += done.gathered.batches;
  report.devices = static_cast<int>(work.devices->count());
  report.peak_device_bytes = std::max(report.peak_device_bytes, done.gathered.peak_device_bytes);
  const double receiving = done.receiving / report.threads;
  report.write_seconds += receiving;
  report.encode_seconds += done.gathered.seconds / report.threads - receiving;
}

std::vector<std::string> SentExport::messages() {
  std::vector<std::string> messages(work_->ranks);
  std::swap(messages, work_->outgoing);
  return messages;
}

void SentExport::receive(std::size_t from, std::span<const std::byte> message) {
  Work& work = *work_;
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::malformed, "rank " + std::to_string(from) + " has told this rank " + what +
                                          "; do all ranks run the same version of shardwright?");
  };
  while (!message.empty()) {
    Place place;
    if (message.size() < sizeof place) fail("bytes of a file that are cut short");
    std::memcpy(&place, message.data(), sizeof place);
    message = message.subspan(sizeof place);
    if (place.file >= work.uploads.size() || work.uploads[place.file] == nullptr)
      fail("bytes of file " + std::to_string(place.file) + ", which another rank sends");
    if (place.count > message.size()) fail("bytes of a file that are cut short");
    work.uploads[place.file]->write(place.offset, message.data(), place.count);
    message = message.subspan(place.count);
  }
}

ExportReport SentExport::finish() {
  Work& work = *work_;
  ExportReport& report = work.report;
  const Clock::time_point written = Clock::now();
  for (std::size_t file = work.rank; file < work.uploads.size(); file += work.ranks) {
    work.uploads[file]->finish();
    ++report.files;
    report.bytes_written += work.catalog().files[file].size;
  }
  report.sync_seconds = seconds_since(written);
  report.total_seconds = seconds_since(work.begin);
  report.row_sums = work.row_sums->encode();
  return report;
}

std::uint64_t SentExport::peak_bytes_to_send() const {
  std::uint64_t peak = work_->peak_outgoing;
  for (const std::unique_ptr<Upload>& upload : work_->uploads) {
    if (upload != nullptr) peak = std::max(peak, work_->peak_outgoing + upload->peak_bytes());
  }
  return peak;
}

}  // namespace shardwright
