#include "storage/format/hf_index.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/format/json_events.h"

namespace shardwright {

namespace {

[[noreturn]] void malformed_index(const std::string& file, const std::string& what) {
  throw Error(ErrorKind::malformed, file + ": " + what);
}

/// Takes weight_map out of the events, and skips all else.
class IndexReader : public JsonEvents {
 public:
  IndexReader(HfIndex& index, std::string file) : index_(index), file_(std::move(file)) {}

  bool has_weight_map = false;
  std::vector<std::string> files_outside;

  bool start_object(std::size_t) override {
    if (is_weight_map_next_) {
      is_weight_map_next_ = false;
      in_weight_map_ = true;
    } else if (in_weight_map_) {
      refuse("an object");
    }
    ++depth_;
    return true;
  }

  bool end_object() override {
    --depth_;
    in_weight_map_ = false;
    return true;
  }

  bool key(std::string& text) override {
    if (in_weight_map_) {
      index_.entries.emplace_back().tensor = std::move(text);
    } else if (depth_ == 1 && text == "weight_map") {
      if (has_weight_map) malformed_index(file_, "weight_map is there twice; keep one of them");
      has_weight_map = true;
      is_weight_map_next_ = true;
    }
    return true;
  }

  bool string(std::string& text) override {
    if (!in_weight_map_) return value(in_quotes(text));
    index_.entries.back().file = file_number(text);
    return true;
  }

  bool start_array(std::size_t) override {
    value("an array");
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool number_integer(std::int64_t number) override { return value(std::to_string(number)); }
  bool number_unsigned(std::uint64_t number) override { return value(std::to_string(number)); }
  bool number_float(double, const std::string& text) override { return value(text); }
  bool null() override { return value("null"); }
  bool boolean(bool truth) override { return value(truth ? "true" : "false"); }

 private:
  /// Any value but an object, or a text in weight_map.
  bool value(const std::string& found) {
    if (is_weight_map_next_ || in_weight_map_) refuse(found);
    return true;
  }

  [[noreturn]] void refuse(const std::string& found) {
    if (!in_weight_map_) {
      malformed_index(file_,
                      "weight_map: expected an object of tensor names and files, found " + printable(found));
    }
    malformed_index(file_, "weight_map: expected the name of a file for tensor " +
                               in_quotes(index_.entries.back().tensor) + ", found " + printable(found));
  }

  std::uint32_t file_number(const std::string& text) {
    const auto known = number_of_path_.find(text);
    if (known != number_of_path_.end()) return known->second;
    std::string path = path_inside(text);
    std::uint32_t number = 0;
    if (path.empty()) {
      files_outside.push_back(text);
    } else {
      number =
          number_of_path_.try_emplace(path, static_cast<std::uint32_t>(index_.files.size())).first->second;
      if (number == index_.files.size()) index_.files.push_back(std::move(path));
    }
    number_of_path_.emplace(text, number);  // "./a" and "a" are two spellings of one path
    return number;
  }

  HfIndex& index_;
  std::string file_;
  int depth_ = 0;
  bool is_weight_map_next_ = false;
  bool in_weight_map_ = false;
  std::unordered_map<std::string, std::uint32_t> number_of_path_;
};

void sort_files(HfIndex& index) {
  std::vector<std::uint32_t> order(index.files.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](std::uint32_t a, std::uint32_t b) { return index.files[a] < index.files[b]; });
  std::vector<std::uint32_t> rank(order.size());
  std::vector<std::string> sorted;
  sorted.reserve(order.size());
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    rank[order[i]] = i;
    sorted.push_back(std::move(index.files[order[i]]));
  }
  index.files = std::move(sorted);
  for (HfIndex::Entry& entry : index.entries) entry.file = rank[entry.file];
}

}  // namespace

HfIndex parse_hf_index(std::string_view json, const std::string& file) {
  HfIndex index;
  IndexReader reader(index, file);
  if (const auto fault = parse_json_object(json, reader)) {
    malformed_index(file, "expected the JSON of an index, but " + *fault + "; download it again");
  }
  if (!reader.has_weight_map) {
    malformed_index(
        file,
        "expected a weight_map of tensor names and files, found none; download it again, or remove it if " +
            std::string("all safetensors files of the directory are to be read"));
  }
  if (!reader.files_outside.empty()) {
    malformed_index(file, "weight_map: expected files inside the directory of the index, found " +
                              listed(reader.files_outside) + "; do not trust this index");
  }
  if (index.entries.empty()) malformed_index(file, "weight_map: expected at least one tensor, found none");
  const auto by_tensor = [](const HfIndex::Entry& a, const HfIndex::Entry& b) { return a.tensor < b.tensor; };
  std::sort(index.entries.begin(), index.entries.end(), by_tensor);
  const auto twice = std::adjacent_find(
      index.entries.begin(), index.entries.end(),
      [](const HfIndex::Entry& a, const HfIndex::Entry& b) { return a.tensor == b.tensor; });
  if (twice != index.entries.end()) {
    malformed_index(file, "weight_map: tensor " + in_quotes(twice->tensor) + " is there twice, in " +
                              in_quotes(index.files[twice->file]) + " and in " +
                              in_quotes(index.files[std::next(twice)->file]));
  }
  sort_files(index);
  return index;
}

std::string make_hf_index(const std::vector<std::string>& files, std::span<const HfIndex::Entry> entries,
                          std::uint64_t total_size) {
  const auto json_text = [](const std::string& text) { return nlohmann::json(text).dump(); };
  std::string json = "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total_size) +
                     "\n  },\n  \"weight_map\": {";
  const char* separator = "\n";
  for (const HfIndex::Entry& entry : entries) {
    json += separator;
    json += "    " + json_text(entry.tensor) + ": " + json_text(files[entry.file]);
    separator = ",\n";
  }
  json += "\n  }\n}\n";
  return json;
}

}  // namespace shardwright
