#include "storage/open_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "planner/error.h"
#include "storage/page_cache.h"

namespace shardwright {

OpenFile::~OpenFile() {
  if (direct_descriptor >= 0) ::close(direct_descriptor);
}

namespace {

std::string bytes_of_tensor(const SourceTensor& tensor) {
  return " for tensor " + tensor.name + ", bytes " + std::to_string(tensor.begin) + " to " +
         std::to_string(tensor.end);
}

}  // namespace

std::unique_ptr<OpenFile> OpenFiles::open(const SourceTensor& tensor) const {
  auto opened = std::make_unique<OpenFile>();
  opened->file = std::make_unique<const InputFile>(catalog_.path_of(tensor));
  const std::uint64_t expected = catalog_.files[tensor.file].size;
  const std::uint64_t found = opened->file->size();
  if (found != expected) {
    throw Error(ErrorKind::io,
                opened->file->path().string() + ": the file ends at offset " + std::to_string(found) +
                    ", expected " + std::to_string(expected) +
                    " bytes as when the load was planned: it has been cut short or replaced",
                EIO);
  }
  // Where the kernel does not tell, the file counts as cached: that is right more often, and never bad.
  opened->is_cached = share_in_page_cache(opened->file->descriptor(), found).value_or(1) >= 0.5;
  if (direct_io_ == DirectIo::always || (direct_io_ == DirectIo::automatic && !opened->is_cached)) {
    opened->direct_descriptor = open_direct(opened->file->path().c_str());
  }
  return opened;
}

const OpenFile& OpenFiles::of(const SourceTensor& tensor) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<OpenFile>& slot = files_[tensor.file];
  if (slot) return *slot;
  try {
    slot = open(tensor);
  } catch (const Error& error) {
    throw Error(ErrorKind::io, std::string(error.what()) + "; opened" + bytes_of_tensor(tensor),
                error.system_error);
  }
  return *slot;
}

void OpenFiles::read(const SourceTensor& tensor, std::uint64_t offset, std::byte* to, std::uint64_t length) {
  const OpenFile& open = of(tensor);
  try {
    open.file->read(offset, reinterpret_cast<char*>(to), length);
  } catch (const Error& error) {
    throw Error(ErrorKind::io,
                std::string(error.what()) + "; reading from byte " + std::to_string(offset) +
                    bytes_of_tensor(tensor) + ". The destinations are partly written",
                error.system_error);
  }
}

std::int64_t OpenFiles::count() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(files_.begin(), files_.end(), [](const auto& file) { return file != nullptr; });
}

std::int64_t OpenFiles::count_direct() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(files_.begin(), files_.end(),
                       [](const auto& file) { return file != nullptr && file->direct_descriptor >= 0; });
}

}  // namespace shardwright
