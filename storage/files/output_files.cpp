#include "storage/files/output_files.h"

#include <algorithm>
#include <utility>

#include "storage/files/open_files.h"

namespace shardwright {

OutputFiles::OutputFiles(std::filesystem::path directory, std::vector<std::string> names)
    : directory_(std::move(directory)),
      names_(std::move(names)),
      most_open_(most_open_files()),
      files_(names_.size()) {}

void OutputFiles::write(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                        const std::string& what) {
  requests_ += begin_use(file).write(offset, bytes, count, what);
  end_use(file);  // not after a failure: the file stays open, and nobody writes any more
  bytes_ += count;
}

void OutputFiles::reach(std::size_t file, std::uint64_t size) {
  begin_use(file).reach(size);
  end_use(file);
}

void OutputFiles::finish() {
  for (const Slot& slot : files_) {
    if (slot.file != nullptr) slot.file->finish();
  }
}

std::int64_t OutputFiles::count() const {
  return std::count_if(files_.begin(), files_.end(), [](const Slot& slot) { return slot.last_use > 0; });
}

OutputFile& OutputFiles::begin_use(std::size_t file) {
  std::unique_ptr<OutputFile> oldest;  // flushed when others may go on
  OutputFile* used = nullptr;
  {
    const std::lock_guard lock(mutex_);
    Slot& slot = files_[file];
    if (slot.file == nullptr) {
      if (open_ >= most_open_) oldest = taken_from_the_oldest();
      slot.file = std::make_unique<OutputFile>(directory_ / names_[file]);
      ++open_;
    }
    slot.last_use = ++last_use_;
    ++slot.users;
    used = slot.file.get();
  }
  if (oldest != nullptr) oldest->finish();
  return *used;
}

void OutputFiles::end_use(std::size_t file) {
  const std::lock_guard lock(mutex_);
  --files_[file].users;
}

/// Of the files that nobody writes to; null if there is none.
std::unique_ptr<OutputFile> OutputFiles::taken_from_the_oldest() {
  Slot* oldest = nullptr;
  for (Slot& slot : files_) {
    if (slot.file == nullptr || slot.users > 0) continue;
    if (oldest == nullptr || slot.last_use < oldest->last_use) oldest = &slot;
  }
  if (oldest == nullptr) return nullptr;
  --open_;
  return std::move(oldest->file);
}

}  // namespace shardwright
