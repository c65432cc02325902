#include "storage/output_files.h"

#include <algorithm>
#include <utility>

namespace shardwright {

OutputFiles::OutputFiles(std::filesystem::path directory, std::vector<std::string> names)
    : directory_(std::move(directory)), names_(std::move(names)), files_(names_.size()) {}

void OutputFiles::write(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                        const std::string& what) {
  requests_ += opened(file).write(offset, bytes, count, what);
  bytes_ += count;
}

void OutputFiles::finish() {
  for (const std::unique_ptr<OutputFile>& file : files_) {
    if (file != nullptr) file->finish(/*sync=*/true);
  }
}

std::int64_t OutputFiles::count() const {
  return std::count_if(files_.begin(), files_.end(), [](const auto& file) { return file != nullptr; });
}

OutputFile& OutputFiles::opened(std::size_t file) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<OutputFile>& opened = files_[file];
  if (opened == nullptr) opened = std::make_unique<OutputFile>(directory_ / names_[file]);
  return *opened;
}

}  // namespace shardwright
