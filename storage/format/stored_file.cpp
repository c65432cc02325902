#include "storage/format/stored_file.h"

#include "storage/files/input_file.h"
#include "storage/format/checksum.h"

namespace shardwright {

std::string change_of(const std::filesystem::path& directory, const StoredFile& written) {
  const InputFile file(directory / written.name);
  if (file.size() != written.size) {
    return "of " + std::to_string(written.size) + " bytes, found " + std::to_string(file.size());
  }
  if (written.header_bytes == 0) return "";
  if (written.header_bytes > file.size()) return "found one that is shorter than its header";
  std::string header(written.header_bytes, '\0');
  file.read(0, header.data(), header.size());
  if (checksum_of(header.data(), header.size()) != written.header_checksum) return "found another header";
  return "";
}

}  // namespace shardwright
