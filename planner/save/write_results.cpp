#include "planner/save/write_results.h"

#include "planner/save/save_message.h"

namespace shardwright {
namespace {

std::vector<StoredFile> files_from(const wire::WriteResults& message) {
  const int count = message.name_size();
  check(message.bytes_in_file_size() == count && message.header_bytes_size() == count &&
            message.header_checksum_size() == count,
        "files without their facts");
  std::vector<StoredFile> files;
  for (int f = 0; f < count; ++f) {
    check(is_file_name(message.name(f)), "a file that is not one of its directory");
    check(message.header_bytes(f) <= message.bytes_in_file(f), "a file shorter than its header");
    files.push_back(
        {message.name(f), message.bytes_in_file(f), message.header_bytes(f), message.header_checksum(f)});
  }
  return files;
}

/// The ranges of the items, inside their files.
std::vector<FileRange> ranges_from(const wire::WriteResults& message, const std::vector<StoredFile>& files,
                                   std::size_t items) {
  const int count = message.in_file_size();
  check(static_cast<std::size_t>(count) == items && message.begin_size() == count &&
            message.length_size() == count && message.checksum_count_size() == count,
        "items without their ranges");
  std::vector<FileRange> ranges;
  std::uint64_t end = 0;
  auto checksum = message.checksum().begin();
  for (int i = 0; i < count; ++i) {
    check(message.in_file(i) < files.size(), "an item in no file");
    const StoredFile& file = files[message.in_file(i)];
    const std::uint64_t begin = end + static_cast<std::uint64_t>(message.begin(i));
    check(begin >= file.header_bytes && begin <= file.size && message.length(i) <= file.size - begin,
          "an item outside its file");
    end = begin + message.length(i);
    check(message.checksum_count(i) <= message.checksum().end() - checksum, "an item without its checksums");
    const auto last = checksum + static_cast<std::ptrdiff_t>(message.checksum_count(i));
    ranges.push_back({message.in_file(i), {begin, end, {checksum, last}}});
    checksum = last;
  }
  check(checksum == message.checksum().end(), "checksums of no item");
  return ranges;
}

}  // namespace

bool is_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

std::string encode(const WriteResults& results) {
  wire::WriteResults message;
  message.set_rank(results.rank);
  message.set_values(encode(results.values));
  for (const std::uint64_t number : pack(results.items, results.values)) message.add_items(number);
  std::uint64_t end = 0;
  for (const FileRange& range : results.ranges) {
    message.add_in_file(range.file);
    message.add_begin(static_cast<std::int64_t>(range.bytes.begin - end));
    message.add_length(range.bytes.end - range.bytes.begin);
    message.add_checksum_count(static_cast<std::uint32_t>(range.bytes.checksums.size()));
    message.mutable_checksum()->Add(range.bytes.checksums.begin(), range.bytes.checksums.end());
    end = range.bytes.end;
  }
  for (const StoredFile& file : results.files) {
    message.add_name(file.name);
    message.add_bytes_in_file(file.size);
    message.add_header_bytes(file.header_bytes);
    message.add_header_checksum(file.header_checksum);
  }
  message.set_failure(results.failure);
  message.set_error_number(results.error_number);
  message.set_misfit(results.misfit);
  return finish_message(message);
}

WriteResults decode_results(std::string_view bytes) {
  const auto message = read_message<wire::WriteResults>(bytes, "what a rank has written");
  WriteResults results;
  check(message.rank() >= 0 && message.rank() < most_ranks, "a rank that there is not");
  results.rank = message.rank();
  results.values = decode_values(message.values());
  check(!results.values.has_mesh(), "what a rank has written, with a mesh");
  results.items = unpack({message.items().begin(), message.items().end()}, results.values);
  results.files = files_from(message);
  results.ranges = ranges_from(message, results.files, results.items.value.size());
  const std::int64_t* size = results.items.corners.data();
  for (std::size_t i = 0; i < results.ranges.size(); ++i) {
    const SavedValue& value = results.values.values[results.items.value[i]];
    const StoredBytes& stored = results.ranges[i].bytes;
    size += value.shape.size();
    check(value.kind == SavedValue::Kind::object || stored.end - stored.begin == bytes_of_box(value, size),
          "a tensor of more bytes than its box, or of less");
    size += value.shape.size();
  }
  results.failure = message.failure();
  results.error_number = message.error_number();
  results.misfit = message.misfit();
  return results;
}

}  // namespace shardwright
