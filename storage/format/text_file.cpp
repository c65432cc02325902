#include "storage/format/text_file.h"

#include "planner/error.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"

namespace shardwright {

std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes) {
  return read_text(InputFile(path), max_bytes);
}

std::string read_text(const InputFile& file, std::uint64_t max_bytes) {
  const std::filesystem::path& path = file.path();
  if (file.size() > max_bytes) {
    throw Error(ErrorKind::malformed, printable(path.native()) + ": expected at most " +
                                          std::to_string(max_bytes) + " bytes of JSON, found " +
                                          std::to_string(file.size()));
  }
  std::string text(file.size(), '\0');
  file.read(0, text.data(), text.size());
  expect_no_git_lfs_pointer(text, printable(path.native()));
  return text;
}

}  // namespace shardwright
