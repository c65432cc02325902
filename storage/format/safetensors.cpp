#include "storage/format/safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "planner/error.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/json_events.h"
#include "storage/format/safetensors_chunks.h"

namespace shardwright {

namespace {

constexpr std::uint64_t length_bytes = 8;

/// What is read of an object at first, in place of the length alone: so small a part of it, and no more.
constexpr std::uint64_t part_of_object = 512;
constexpr std::uint64_t most_of_first_read = std::uint64_t{256} << 10;

constexpr char metadata_key[] = "__metadata__";
constexpr char advice[] = "; the file is damaged or its writer is faulty: download or save it again";

[[noreturn]] void malformed_header(const std::string& file, const std::string& what) {
  throw Error(ErrorKind::malformed, file + ": " + what + advice);
}

/// Bytes of a tensor, or why there is no such number.
struct ByteCount {
  std::uint64_t bytes = 0;
  const char* fault = nullptr;
};

ByteCount count_bytes(DType dtype, const Shape& shape) {
  // Sizes of 0 count as 1 for the bound, so that strides over the other dimensions cannot overflow either.
  std::int64_t bound = bits_of(dtype);
  std::uint64_t bits = static_cast<std::uint64_t>(bound);
  for (const std::int64_t size : shape) {
    if (size < 0) return {0, "a negative size"};
    if (__builtin_mul_overflow(bound, std::max<std::int64_t>(size, 1), &bound)) {
      return {0, "more elements than 64 bits can count"};
    }
    bits *= static_cast<std::uint64_t>(size);
  }
  if (bits % 8 != 0) return {0, "no whole number of bytes"};
  return {bits / 8, nullptr};
}

/// Fills a SafetensorsHeader from the events of its JSON. Checks the form; what the numbers mean is checked
/// later.
class HeaderReader : public JsonEvents {
 public:
  HeaderReader(SafetensorsHeader& header, std::string file) : header_(header), file_(std::move(file)) {}

  bool start_object(std::size_t) override {
    if (level_ == Level::outside) {
      level_ = Level::names;
    } else if (level_ == Level::name_value) {
      level_ = is_metadata_ ? Level::metadata_keys : Level::fields;
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(std::string& text) override {
    if (level_ == Level::names) {
      begin_member(text);
    } else if (level_ == Level::metadata_keys) {
      metadata_name_ = std::move(text);
      level_ = Level::metadata_value;
    } else {
      begin_field(text);
    }
    return true;
  }

  bool string(std::string& text) override {
    if (level_ == Level::metadata_value) {
      if (!header_.metadata.emplace(metadata_name_, std::move(text)).second) {
        malformed_header(file_, "__metadata__ names " + in_quotes(metadata_name_) + " twice");
      }
      level_ = Level::metadata_keys;
    } else if (level_ == Level::field_value && field_ == Field::dtype) {
      const std::optional<DType> dtype = dtype_named(text);
      if (!dtype) {
        malformed_header(file_,
                         tensor() + ": expected a dtype that safetensors has, found " + in_quotes(text));
      }
      header_.tensors.back().dtype = *dtype;
      level_ = Level::fields;
    } else {
      refuse(in_quotes(text));
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (level_ != Level::field_value || field_ == Field::dtype) refuse("an array");
    level_ = Level::numbers;
    offsets_found_ = 0;
    return true;
  }

  bool number_unsigned(std::uint64_t value) override {
    if (level_ != Level::numbers) refuse(std::to_string(value));
    SourceTensor& entry = header_.tensors.back();
    if (field_ == Field::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        refuse(std::to_string(value));
      if (entry.shape.size() == max_rank) {
        malformed_header(file_, tensor() + ": expected at most " + std::to_string(max_rank) +
                                    " dimensions, found more: shardwright does not read such tensors");
      }
      entry.shape.push_back(static_cast<std::int64_t>(value));
    } else {
      if (offsets_found_ == 2) malformed_header(file_, tensor() + ": expected two data_offsets, found more");
      (offsets_found_ == 0 ? entry.begin : entry.end) = value;
      ++offsets_found_;
    }
    return true;
  }

  bool end_array() override {
    if (field_ == Field::data_offsets && offsets_found_ != 2) {
      malformed_header(file_,
                       tensor() + ": expected two data_offsets, found " + std::to_string(offsets_found_));
    }
    level_ = Level::fields;
    return true;
  }

  bool end_object() override {
    if (level_ == Level::fields) {
      for (const Field field : {Field::dtype, Field::shape, Field::data_offsets}) {
        if (!has(field))
          malformed_header(
              file_, tensor() + ": expected the field " + in_quotes(field_name(field)) + ", found none");
      }
    }
    level_ = level_ == Level::names ? Level::outside : Level::names;
    return true;
  }

  bool number_integer(std::int64_t value) override { refuse(std::to_string(value)); }
  bool number_float(double, const std::string& text) override { refuse(printable(text)); }
  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }

 private:
  enum class Level {
    outside,
    names,
    name_value,
    fields,
    field_value,
    numbers,
    metadata_keys,
    metadata_value
  };
  enum class Field : std::uint8_t { dtype = 1, shape = 2, data_offsets = 4 };

  static std::string_view field_name(Field field) {
    return field == Field::dtype ? "dtype" : field == Field::shape ? "shape" : "data_offsets";
  }
  bool has(Field field) const { return (fields_found_ & static_cast<std::uint8_t>(field)) != 0; }
  std::string tensor() const { return "tensor " + in_quotes(header_.tensors.back().name); }

  void begin_member(std::string& name) {
    is_metadata_ = name == metadata_key;
    if (is_metadata_) {
      if (has_metadata_) malformed_header(file_, "__metadata__ is there twice");
      has_metadata_ = true;
    } else {
      header_.tensors.emplace_back();
      header_.tensors.back().name = std::move(name);
      if (tensor_name().empty()) malformed_header(file_, "expected a tensor's name, found an empty text");
      if (tensor_name().find('\0') != std::string::npos) {
        malformed_header(file_, tensor() + ": expected a name without NUL characters");
      }
      fields_found_ = 0;
    }
    level_ = Level::name_value;
  }

  void begin_field(const std::string& name) {
    if (name == "dtype") {
      field_ = Field::dtype;
    } else if (name == "shape") {
      field_ = Field::shape;
    } else if (name == "data_offsets") {
      field_ = Field::data_offsets;
    } else {
      malformed_header(
          file_, tensor() + ": expected the fields dtype, shape and data_offsets, found " + in_quotes(name));
    }
    if (has(field_)) malformed_header(file_, tensor() + ": the field " + in_quotes(name) + " is there twice");
    fields_found_ |= static_cast<std::uint8_t>(field_);
    level_ = Level::field_value;
  }

  const std::string& tensor_name() const { return header_.tensors.back().name; }

  /// Throws the error for a value that does not belong where it is.
  [[noreturn]] void refuse(const std::string& found) {
    switch (level_) {
      case Level::name_value:
        if (is_metadata_) malformed_header(file_, "__metadata__: expected an object, found " + found);
        malformed_header(
            file_, tensor() + ": expected an object with dtype, shape and data_offsets, found " + found);
      case Level::metadata_value:
        malformed_header(file_,
                         "__metadata__: expected text for " + in_quotes(metadata_name_) + ", found " + found);
      case Level::field_value:
        malformed_header(file_, tensor() + ": expected " + (field_ == Field::dtype ? "text" : "an array") +
                                    " for " + in_quotes(field_name(field_)) + ", found " + found);
      case Level::numbers:
        malformed_header(file_, tensor() + ": expected whole numbers from 0 to 2^63 - 1 in " +
                                    in_quotes(field_name(field_)) + ", found " + found);
      default:
        malformed_header(file_, "expected an object of tensors, found " + found);
    }
  }

  SafetensorsHeader& header_;
  std::string file_;
  Level level_ = Level::outside;
  Field field_ = Field::dtype;
  std::uint8_t fields_found_ = 0;
  int offsets_found_ = 0;
  bool is_metadata_ = false;
  bool has_metadata_ = false;
  std::string metadata_name_;
};

std::string range(std::uint64_t begin, std::uint64_t end) {
  return "[" + std::to_string(begin) + ", " + std::to_string(end) + "]";
}

/// Offsets of one tensor, still relative to the end of the header, against its dtype, its shape and the file.
void check_tensor(const SourceTensor& tensor, std::uint64_t data_bytes, const std::string& file) {
  const std::string where = "tensor " + in_quotes(tensor.name) + ": ";
  const std::string stored = range(tensor.begin, tensor.end);
  if (tensor.begin > tensor.end)
    malformed_header(file, where + "data_offsets " + stored + " end before they begin");
  if (tensor.end > data_bytes) {
    malformed_header(file, where + "data_offsets " + stored + " reach beyond the file, which holds " +
                               std::to_string(data_bytes) + " bytes of tensors");
  }
  const std::string form =
      "dtype " + std::string(name_of(tensor.dtype)) + " and shape " + to_string(tensor.shape);
  const ByteCount need = count_bytes(tensor.dtype, tensor.shape);
  if (need.fault != nullptr) malformed_header(file, where + form + " make " + need.fault);
  if (need.bytes != tensor.end - tensor.begin) {
    malformed_header(file, where + "expected " + std::to_string(need.bytes) + " bytes for " + form +
                               ", found " + std::to_string(tensor.end - tensor.begin) + " in data_offsets " +
                               stored);
  }
}

void check_names(const std::vector<SourceTensor>& tensors, const std::string& file) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const SourceTensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) malformed_header(file, "tensor " + in_quotes(*twice) + " is there twice");
}

/// The tensors must fill the data exactly: torch and safetensors write no gaps, and the format forbids them.
void check_ranges(const std::vector<SourceTensor>& tensors, std::uint64_t data_bytes,
                  const std::string& file) {
  std::vector<const SourceTensor*> in_order;
  in_order.reserve(tensors.size());
  for (const SourceTensor& tensor : tensors) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(), [](const SourceTensor* a, const SourceTensor* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  const SourceTensor* before = nullptr;
  std::uint64_t filled = 0;
  for (const SourceTensor* tensor : in_order) {
    if (tensor->begin < filled) {
      malformed_header(file, "tensors " + in_quotes(before->name) + " and " + in_quotes(tensor->name) +
                                 " overlap: their data_offsets are " + range(before->begin, before->end) +
                                 " and " + range(tensor->begin, tensor->end));
    }
    if (tensor->begin > filled) {
      malformed_header(file, "tensor " + in_quotes(tensor->name) + ": expected to begin at data offset " +
                                 std::to_string(filled) + ", where the tensor before it ends, found " +
                                 std::to_string(tensor->begin) + ": no tensor owns the bytes between");
    }
    filled = tensor->end;
    before = tensor;
  }
  if (filled != data_bytes) {
    malformed_header(file, "expected the file to end with its last tensor, after " + std::to_string(filled) +
                               " bytes of tensors, found " + std::to_string(data_bytes - filled) +
                               " bytes more");
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t file_size,
                                           const std::string& file) {
  if (json.empty() || json.front() != '{') {
    malformed_header(file, "expected a header that begins with {, found " + in_quotes(json.substr(0, 1)));
  }
  SafetensorsHeader header;
  HeaderReader reader(header, file);
  if (const auto fault = parse_json_object(json, reader))
    malformed_header(file, "the header is not valid JSON: " + *fault);

  const std::uint64_t data_start = length_bytes + json.size();
  if (data_start > file_size) {
    malformed_header(file, "expected a header of " + std::to_string(json.size()) +
                               " bytes, found a file of " + std::to_string(file_size));
  }
  const std::uint64_t data_bytes = file_size - data_start;
  for (const SourceTensor& tensor : header.tensors) check_tensor(tensor, data_bytes, file);
  check_names(header.tensors, file);
  check_ranges(header.tensors, data_bytes, file);
  for (SourceTensor& tensor : header.tensors) {
    tensor.begin += data_start;
    tensor.end += data_start;
    tensor.offset.assign(tensor.shape.size(), 0);
  }
  read_chunk_offsets(header, file);
  return header;
}

namespace {

/// The length of the header; of an object as much as costs little beside the rest of it, and holds most
/// headers: a second request would take as long as the first.
std::size_t first_read_of(const InputFile& input) {
  if (!input.is_object()) return length_bytes;
  return std::clamp<std::uint64_t>(input.size() / part_of_object, length_bytes, most_of_first_read);
}

}  // namespace

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path, std::uint64_t& size) {
  const InputFile input(path);
  size = input.size();
  return read_safetensors_header(input);
}

SafetensorsHeader read_safetensors_header(const InputFile& input) {
  const std::string file = printable(input.path().native());
  const std::uint64_t size = input.size();
  if (size < length_bytes) {
    malformed_header(file,
                     "expected at least 8 bytes, the length of the header, found " + std::to_string(size));
  }
  std::string begin(first_read_of(input), '\0');
  input.read(0, begin.data(), begin.size());
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= std::uint64_t{static_cast<std::uint8_t>(begin[i])} << (8 * i);
  }
  if (length == 0) malformed_header(file, "expected a header, found a header length of 0");
  if (length > max_safetensors_header_bytes) {
    std::string text(std::min<std::uint64_t>(size, 64), '\0');
    input.read(0, text.data(), text.size());
    expect_no_git_lfs_pointer(text, file);
    malformed_header(file, "expected a header of at most " + std::to_string(max_safetensors_header_bytes) +
                               " bytes, found a header length of " + std::to_string(length));
  }
  if (length > size - length_bytes) {
    malformed_header(file, "expected a header of " + std::to_string(length) + " bytes, found a file of " +
                               std::to_string(size) + " bytes");
  }
  std::string json(length, '\0');
  const std::size_t there = begin.copy(json.data(), length, length_bytes);
  input.read(length_bytes + there, json.data() + there, length - there);
  return parse_safetensors_header(json, size, file);
}

std::uint64_t stored_bytes(DType dtype, const Shape& shape) {
  const ByteCount count = count_bytes(dtype, shape);
  if (count.fault != nullptr) {
    throw Error(ErrorKind::argument, "dtype " + std::string(name_of(dtype)) + " and shape " +
                                         to_string(shape) + " make " + count.fault +
                                         ", which safetensors cannot hold");
  }
  return count.bytes;
}

}  // namespace shardwright
