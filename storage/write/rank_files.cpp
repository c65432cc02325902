#include "storage/write/rank_files.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/names/torch_dtypes.h"
#include "planner/save/chunks.h"
#include "storage/files/printable.h"
#include "storage/files/random_number.h"
#include "storage/format/row_checksums.h"
#include "storage/format/torch_stream.h"

namespace shardwright {
namespace {

/// Files that are open at a time, written and on their way to the device.
constexpr std::size_t most_unfinished_files = 32;

std::string random_tag() {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%012llx", static_cast<unsigned long long>(random_number() >> 16));
  return digits;
}

/// What safetensors calls a tensor's dtype; nothing for an object, and for a dtype that it lacks.
std::optional<DType> dtype_in_file(const SavedValue& value) {
  if (value.kind == SavedValue::Kind::object) return std::nullopt;
  return dtype_of_torch(value.properties.dtype);
}

std::string numbered(const char* format, std::int64_t rank, std::size_t number) {
  char text[64];
  std::snprintf(text, sizeof text, format, static_cast<int>(rank), number);
  return text;
}

}  // namespace

struct RankFiles::File {
  std::vector<std::size_t> items;
  bool holds_bytes = false;  // else it is a safetensors file
  std::unique_ptr<ShardFile> file;
  std::vector<bool> written;  // of its items
  std::size_t left = 0;       // of its items to be written
};

RankFiles::RankFiles(std::filesystem::path directory, std::int64_t rank, RankItems what,
                     const RankFilesOptions& options)
    : directory_(std::move(directory)),
      what_(std::move(what)),
      flush_(options.flush),
      as_torch_(options.as_torch),
      send_(options.send) {
  results_.rank = rank;
  const std::size_t count = what_.items.value.size();
  file_of_item_.resize(count);
  place_in_file_.resize(count);
  std::size_t corners = 0;
  for (std::size_t i = 0; i < count; ++i) {
    corners_of_item_.push_back(corners);
    corners += 2 * value_of(i).shape.size();
  }
  deal_out(options);
  for (std::size_t f = 0; f < files_.size(); ++f) {
    File& file = files_[f];
    if (file.holds_bytes) {
      std::stable_partition(file.items.begin(), file.items.end(),
                            [&](std::size_t i) { return value_of(i).kind != SavedValue::Kind::object; });
    }
    file.left = file.items.size();
    file.written.assign(file.items.size(), false);
    for (std::size_t place = 0; place < file.items.size(); ++place) {
      file_of_item_[file.items[place]] = f;
      place_in_file_[file.items[place]] = place;
    }
  }
}

/// Decides which files there are, and which items they hold.
void RankFiles::deal_out(const RankFilesOptions& options) {
  const std::string tag = options.tag.empty() ? random_tag() : options.tag;
  const bool is_torchs = as_torch_;
  std::unordered_map<std::uint32_t, std::size_t> boxes_of_value;
  std::vector<std::size_t> as_bytes;
  std::unordered_set<std::string> names;
  const auto add_file = [&](std::string name) {
    if (!names.insert(name).second)
      throw Error(ErrorKind::argument, "two files of one rank would be called " + in_quotes(name));
    results_.files.push_back({std::move(name), 0, 0, 0});
    files_.emplace_back();
    files_.back().holds_bytes = is_torchs;
  };
  for (std::size_t i = 0; i < what_.items.value.size(); ++i) {
    const std::uint32_t index = what_.items.value[i];
    const SavedValue& value = what_.values.values[index];
    if (!is_torchs && !dtype_in_file(value)) {
      as_bytes.push_back(i);
      continue;
    }
    // A safetensors file has a name once.
    const std::size_t box = is_torchs ? 0 : boxes_of_value[index]++;
    const std::size_t number = options.single_file ? box : files_.size();
    if (number == files_.size()) {
      add_file(options.name ? options.name(value.fqn, number)
                            : numbered("rank-%05d-%05zu-", results_.rank, number) + tag +
                                  (is_torchs ? ".distcp" : ".safetensors"));
    }
    files_[number].items.push_back(i);
  }
  if (as_bytes.empty()) return;
  add_file(numbered("rank-%05d-", results_.rank, 0) + tag + ".bin");
  files_.back().items = std::move(as_bytes);
  files_.back().holds_bytes = true;
}

RankFiles::~RankFiles() = default;

GatherFigures RankFiles::write(std::span<const std::size_t> items, std::span<const TensorInMemory> memory,
                               int threads, const DeviceOptions& devices) {
  GatherFigures figures;
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return file_of_item_.at(items[a]) < file_of_item_.at(items[b]);
  });
  for (std::size_t first = 0; first < order.size();) {
    const std::size_t number = file_of_item_[items[order[first]]];
    File& file = files_[number];
    if (!file.file) open(number);
    std::vector<std::size_t> places;
    std::vector<TensorInMemory> parts;
    for (; first < order.size() && file_of_item_[items[order[first]]] == number; ++first) {
      const std::size_t place = place_in_file_[items[order[first]]];
      if (file.written[place])
        throw Error(ErrorKind::argument, name_of(items[order[first]]) + ": is written twice");
      file.written[place] = true;
      places.push_back(place);
      parts.push_back(memory[order[first]]);
    }
    figures.add(file.file->write(places, parts, threads, devices));
    file.left -= places.size();
    if (file.left > 0) continue;
    written_.push_back(number);
    if (written_.size() - closed_ > most_unfinished_files) files_[written_[closed_++]].file->finish();
  }
  return figures;
}

WriteResults RankFiles::finish() {
  for (std::size_t i = 0; i < file_of_item_.size(); ++i) {
    if (!files_[file_of_item_[i]].written[place_in_file_[i]])
      throw Error(ErrorKind::argument, name_of(i) + ": has not been written");
  }
  for (std::size_t f = 0; f < files_.size(); ++f) {
    ShardFile& file = *files_[f].file;
    file.finish();
    peak_bytes_to_send_ = std::max(peak_bytes_to_send_, file.peak_bytes_to_send());
    StoredFile& told = results_.files[f];
    told = {told.name, file.size(), file.header_bytes(), file.header_checksum()};
  }
  for (std::size_t i = 0; i < file_of_item_.size(); ++i) {
    const std::size_t f = file_of_item_[i];
    results_.ranges.push_back({static_cast<std::uint32_t>(f), files_[f].file->items()[place_in_file_[i]]});
  }
  results_.values = std::move(what_.values);
  results_.items = std::move(what_.items);
  return std::move(results_);
}

void RankFiles::open(std::size_t number) {
  File& file = files_[number];
  const std::filesystem::path path = directory_ / results_.files[number].name;
  if (file.holds_bytes) {
    std::vector<RowsInFile> rows;
    for (const std::size_t item : file.items) rows.push_back(rows_in_file(item));
    file.file = std::make_unique<ShardFile>(path, std::move(rows), flush_, send_);
    return;
  }
  std::vector<SourceTensor> chunks;
  for (const std::size_t item : file.items) {
    const SavedValue& value = value_of(item);
    Box box = box_of(item);
    chunks.push_back({value.fqn, *dtype_in_file(value), std::move(box.size), std::move(box.offset), 0, 0, 0});
  }
  file.file = std::make_unique<ShardFile>(path, std::move(chunks), flush_, send_);
}

RowsInFile RankFiles::rows_in_file(std::size_t item) const {
  const SavedValue& value = value_of(item);
  const std::uint64_t bytes = bytes_of(item);
  RowsInFile rows{value.fqn, {bytes, bytes}};
  if (!as_torch_ || value.kind == SavedValue::Kind::object) return rows;
  const Box box = box_of(item);
  const std::optional<DType> dtype = dtype_in_file(value);
  if (dtype) rows.rows = rows_of({value.fqn, *dtype, box.size, box.offset, 0, 0, bytes});
  rows.header = torch_stream_header(value.fqn, value.properties.dtype, value.properties.element_bytes, box);
  return rows;
}

const SavedValue& RankFiles::value_of(std::size_t item) const {
  return what_.values.values.at(what_.items.value[item]);
}

const std::string& RankFiles::name_of(std::size_t item) const { return value_of(item).fqn; }

Box RankFiles::box_of(std::size_t item) const {
  return box_at(what_.items.corners.data() + corners_of_item_[item], value_of(item).shape.size());
}

std::uint64_t RankFiles::bytes_of(std::size_t item) const {
  const SavedValue& value = value_of(item);
  if (value.kind == SavedValue::Kind::object) return what_.object_bytes.at(item);
  return bytes_of_box(value, what_.items.corners.data() + corners_of_item_[item] + value.shape.size());
}

}  // namespace shardwright
