#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/format/json_text.h"
#include "storage/format/safetensors.h"

namespace shardwright {

namespace {

/// Refuses names that mean something else in a header, or that readers refuse.
void expect_name(const std::string& name) {
  if (!name.empty() && name != "__metadata__" && name.find('\0') == std::string::npos) return;
  throw Error(ErrorKind::argument, "a safetensors file cannot hold a tensor named " + in_quotes(name) +
                                       "; expected a name that is not empty, not __metadata__, and without "
                                       "NUL characters: rename the tensor");
}

void append_tensor(std::string& json, const SourceTensor& tensor, std::uint64_t begin, std::uint64_t end) {
  const Shape& shape = tensor.stored == nullptr ? tensor.shape : tensor.stored->shape;
  expect_name(stored_name(tensor));
  json += json_text(stored_name(tensor));
  json += ":{\"dtype\":\"";
  json += name_of(tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype);
  json += "\",\"shape\":[";
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (d > 0) json += ',';
    json += std::to_string(shape[d]);
  }
  json += "],\"data_offsets\":[" + std::to_string(begin) + ',' + std::to_string(end) + "]}";
}

}  // namespace

std::string make_safetensors_header(std::span<SourceTensor> tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, text] : metadata) {
      if (json.back() != '{') json += ',';
      json += json_text(key) + ':' + json_text(text);
    }
    json += '}';
  }
  std::uint64_t filled = 0;
  for (SourceTensor& tensor : tensors) {
    const std::uint64_t bytes = stored_bytes(tensor.dtype, tensor.shape);
    if (json.size() > 1) json += ',';
    append_tensor(json, tensor, filled, filled + bytes);
    tensor.begin = filled;
    tensor.end = filled += bytes;
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');  // so that the data is aligned in the file
  if (json.size() > max_safetensors_header_bytes) {
    throw Error(ErrorKind::argument, "expected a safetensors header of at most " +
                                         std::to_string(max_safetensors_header_bytes) + " bytes, " +
                                         std::to_string(tensors.size()) +
                                         " tensors need more: spread them over more files");
  }

  std::string header(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<char>(json.size() >> (8 * i));
  header += json;
  for (SourceTensor& tensor : tensors) {
    tensor.begin += header.size();
    tensor.end += header.size();
  }
  return header;
}

}  // namespace shardwright
