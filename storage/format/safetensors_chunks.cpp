#include "storage/format/safetensors_chunks.h"

#include <limits>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/format/json_events.h"
#include "storage/format/json_text.h"

namespace shardwright {

namespace {

constexpr char sharding_key[] = "DCP_SHARDING_INFO";
constexpr char offsets_key[] = "saved_offsets";

[[noreturn]] void malformed_sharding(const std::string& file, const std::string& what) {
  throw Error(ErrorKind::malformed, file + ": " + sharding_key + ": " + what + "; save the checkpoint again");
}

/// Names to offsets, from {"name": {"saved_offsets": [0, 4]}}.
class ShardingReader : public JsonEvents {
 public:
  explicit ShardingReader(std::string file) : file_(std::move(file)) {}

  std::unordered_map<std::string, Shape> offsets;

  bool start_object(std::size_t) override {
    if (level_ == Level::outside) {
      level_ = Level::names;
    } else if (level_ == Level::name_value) {
      level_ = Level::fields;
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(std::string& text) override {
    if (level_ == Level::names) {
      name_ = std::move(text);
      if (!offsets.emplace(name_, Shape{}).second)
        malformed_sharding(file_, "tensor " + in_quotes(name_) + " is there twice");
      has_offsets_ = false;
      level_ = Level::name_value;
    } else {
      if (text != offsets_key) refuse(in_quotes(text));
      if (has_offsets_)
        malformed_sharding(file_, "tensor " + in_quotes(name_) + ": saved_offsets is there twice");
      has_offsets_ = true;
      level_ = Level::field_value;
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (level_ != Level::field_value) refuse("an array");
    level_ = Level::numbers;
    return true;
  }

  bool number_unsigned(std::uint64_t value) override {
    if (level_ != Level::numbers) refuse(std::to_string(value));
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      refuse(std::to_string(value));
    Shape& found = offsets[name_];
    if (found.size() == max_rank) refuse("more than " + std::to_string(max_rank) + " of them");
    found.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool end_array() override {
    level_ = Level::fields;
    return true;
  }

  bool end_object() override {
    if (level_ == Level::fields) {
      if (!has_offsets_) refuse("none");
      level_ = Level::names;
    } else {
      level_ = Level::outside;
    }
    return true;
  }

  bool number_integer(std::int64_t value) override { refuse(std::to_string(value)); }
  bool number_float(double, const std::string& text) override { refuse(printable(text)); }
  bool string(std::string& text) override { refuse(in_quotes(text)); }
  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }

 private:
  enum class Level { outside, names, name_value, fields, field_value, numbers };

  [[noreturn]] void refuse(const std::string& found) {
    malformed_sharding(
        file_, "tensor " + in_quotes(name_) +
                   ": expected {\"saved_offsets\": [...]} with whole numbers from 0 to 2^63 - 1, found " +
                   found);
  }

  std::string file_;
  Level level_ = Level::outside;
  std::string name_;
  bool has_offsets_ = false;
};

}  // namespace

void read_chunk_offsets(SafetensorsHeader& header, const std::string& file) {
  const auto entry = header.metadata.find(sharding_key);
  if (entry == header.metadata.end() || entry->second.empty()) return;
  ShardingReader reader(file);
  if (const auto fault = parse_json_object(entry->second, reader))
    malformed_sharding(file, "expected JSON, but " + *fault);

  for (SourceTensor& tensor : header.tensors) {
    const auto found = reader.offsets.find(tensor.name);
    if (found == reader.offsets.end()) {
      malformed_sharding(file, "expected saved_offsets for every tensor of the file, found none for " +
                                   in_quotes(tensor.name));
    }
    const Shape& offset = found->second;
    if (offset.size() != tensor.shape.size()) {
      malformed_sharding(file, "tensor " + in_quotes(tensor.name) + ": expected " +
                                   std::to_string(tensor.shape.size()) + " saved_offsets for shape " +
                                   to_string(tensor.shape) + ", found " + std::to_string(offset.size()));
    }
    for (std::size_t d = 0; d < offset.size(); ++d) {
      if (offset[d] > std::numeric_limits<std::int64_t>::max() - tensor.shape[d]) {
        malformed_sharding(file, "tensor " + in_quotes(tensor.name) + ": saved_offsets " + to_string(offset) +
                                     " and shape " + to_string(tensor.shape) + " reach beyond 2^63 - 1");
      }
    }
    tensor.offset = std::move(found->second);
    reader.offsets.erase(found);
  }
  if (!reader.offsets.empty()) {
    malformed_sharding(
        file, "names tensor " + in_quotes(reader.offsets.begin()->first) + ", which the file does not hold");
  }
}

std::string chunk_offsets_text(std::span<const SourceTensor> chunks) {
  std::string json = "{";
  for (const SourceTensor& chunk : chunks) {
    if (json.size() > 1) json += ',';
    json += json_text(chunk.name) + ":{\"" + offsets_key + "\":[";
    for (std::size_t d = 0; d < chunk.offset.size(); ++d) {
      if (d > 0) json += ',';
      json += std::to_string(chunk.offset[d]);
    }
    json += "]}";
  }
  return json + '}';
}

}  // namespace shardwright
