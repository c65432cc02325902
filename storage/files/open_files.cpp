#include "storage/files/open_files.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/page_cache.h"

namespace shardwright {

OpenFile::~OpenFile() {
  if (gpu_direct != nullptr) gpu_direct_calls->release_file(gpu_direct);
  if (direct_descriptor >= 0) ::close(direct_descriptor);
}

namespace {

std::string bytes_of_tensor(const SourceTensor& tensor) {
  return " for tensor " + tensor.name + ", bytes " + std::to_string(tensor.begin) + " to " +
         std::to_string(tensor.end);
}

}  // namespace

std::size_t most_open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  std::size_t used = 0;
  try {
    used = names_in("/proc/self/fd").size();
  } catch (const Error&) {
    return 1;  // that took one, too, and there was none
  }
  const std::size_t left = limit.rlim_cur > used ? limit.rlim_cur - used : 0;
  return std::clamp<std::size_t>(left / 4, 1, 1024);
}

OpenFiles::OpenFiles(const Catalog& catalog, std::optional<bool> direct_io)
    : catalog_(catalog), direct_io_(direct_io), most_open_(most_open_files()), slots_(catalog.files.size()) {}

std::shared_ptr<OpenFile> OpenFiles::open(const SourceTensor& tensor, const Slot& slot) const {
  auto opened = std::make_shared<OpenFile>();
  const SourceFile& known = catalog_.files[tensor.file];
  opened->file = std::make_unique<const InputFile>(catalog_.path_of(tensor), known.size, known.version);
  if (opened->file->is_object()) {
    opened->is_cached = false;
    return opened;
  }
  const std::uint64_t expected = known.size;
  const std::uint64_t found = opened->file->size();
  if (found != expected) {
    throw Error(ErrorKind::io,
                opened->file->path().string() + ": the file ends at offset " + std::to_string(found) +
                    ", expected " + std::to_string(expected) +
                    " bytes as when the load was planned: it has been cut short or replaced",
                EIO);
  }
  const bool again = slot.last_use > 0;
  // Where the kernel does not tell, the file counts as cached: that is right more often, and never bad.
  opened->is_cached =
      again ? slot.is_cached : fraction_in_page_cache(opened->file->descriptor(), found).value_or(1) >= 0.5;
  const bool direct = direct_io_.value_or(!opened->is_cached);
  if (again ? slot.is_direct : direct) {
    opened->direct_descriptor = open_direct(opened->file->path().c_str(), opened->file->descriptor());
    if (opened->direct_descriptor < 0 && errno == EMFILE) {
      throw Error(ErrorKind::io,
                  opened->file->path().string() +
                      ": cannot open this file for reading past the page cache: too many open files",
                  EMFILE);
    }
  }
  return opened;
}

/// Null if the process may not have another file open until one that is in use is given back.
std::shared_ptr<const OpenFile> OpenFiles::opened(const SourceTensor& tensor) {
  Slot& slot = slots_[tensor.file];
  while (!slot.file) {
    if (open_ >= most_open_) close_the_oldest();
    try {
      slot.file = open(tensor, slot);
    } catch (const Error& error) {
      if (error.system_error == EMFILE) {  // the rest of the process has more open than we allow for
        if (close_the_oldest()) continue;
        if (in_use_ > 0) return nullptr;
      }
      throw Error(ErrorKind::io, std::string(error.what()) + "; opened" + bytes_of_tensor(tensor),
                  error.system_error);
    }
    ++open_;
    if (slot.last_use == 0) {
      slot.is_cached = slot.file->is_cached;
      slot.is_direct = slot.file->direct_descriptor >= 0;
    }
  }
  slot.last_use = ++last_use_;
  register_gpu_direct(slot);
  return slot.file;
}

/// Asks once for each file. Nobody uses one that was not asked for yet, so it may be changed.
void OpenFiles::register_gpu_direct(Slot& slot) const {
  OpenFile& file = *slot.file;
  if (gpu_direct_calls_ == nullptr || !slot.may_be_gpu_direct || file.direct_descriptor < 0) return;
  if (file.gpu_direct != nullptr) return;
  file.gpu_direct_calls = gpu_direct_calls_;
  file.gpu_direct = gpu_direct_calls_->register_file(file.direct_descriptor);
  slot.may_be_gpu_direct = file.gpu_direct != nullptr;
}

OpenFiles::Use OpenFiles::handed_out(std::shared_ptr<const OpenFile> file) {
  ++in_use_;
  const OpenFile* const address = file.get();
  return {address, GivesFileBack{this, std::move(file)}};
}

void GivesFileBack::operator()(const OpenFile*) {
  {
    const std::lock_guard lock(from->mutex_);
    file.reset();
    --from->in_use_;
  }
  from->given_back_.notify_all();
}

OpenFiles::Uses OpenFiles::uses_of(const SourceTensor& weights, const SourceTensor* scales) {
  std::shared_ptr<const OpenFile> first = opened(weights);
  if (!first) return {};
  if (scales == nullptr || scales->file == weights.file) return {handed_out(std::move(first)), nullptr};
  std::shared_ptr<const OpenFile> second = opened(*scales);
  if (!second) return {};
  return {handed_out(std::move(first)), handed_out(std::move(second))};
}

OpenFiles::Uses OpenFiles::try_to_use(const SourceTensor& weights, const SourceTensor* scales) {
  const std::lock_guard lock(mutex_);
  return uses_of(weights, scales);
}

OpenFiles::Uses OpenFiles::use(const SourceTensor& weights, const SourceTensor* scales) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (Uses uses = uses_of(weights, scales); uses.weights) return uses;
    given_back_.wait(lock);
  }
}

void OpenFiles::give_up_direct(const SourceTensor& tensor) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[tensor.file];
  if (!slot.is_direct) return;
  slot.is_direct = false;
  forget(slot);
}

void OpenFiles::give_up_gpu_direct(const SourceTensor& tensor) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[tensor.file];
  if (!slot.may_be_gpu_direct) return;
  slot.may_be_gpu_direct = false;
  forget(slot);
}

void OpenFiles::close_all() {
  const std::lock_guard lock(mutex_);
  for (Slot& slot : slots_) forget(slot);
}

/// To be opened anew; whoever still reads from it keeps it open.
void OpenFiles::forget(Slot& slot) {
  if (!slot.file) return;
  slot.file.reset();
  --open_;
}

/// Of the files that nobody uses: the others would keep their descriptors. False if there is none.
bool OpenFiles::close_the_oldest() {
  Slot* oldest = nullptr;
  for (Slot& slot : slots_) {
    if (slot.file.use_count() != 1) continue;  // closed, or in use
    if (oldest == nullptr || slot.last_use < oldest->last_use) oldest = &slot;
  }
  if (oldest == nullptr) return false;
  oldest->file.reset();
  --open_;
  return true;
}

void read_of(const OpenFile& file, const SourceTensor& tensor, std::uint64_t offset, std::byte* to,
             std::uint64_t length) {
  naming_read(tensor, offset, [&] { file.file->read(offset, reinterpret_cast<char*>(to), length); });
}

void naming_read(const SourceTensor& tensor, std::uint64_t offset, const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    throw Error(ErrorKind::io,
                std::string(error.what()) + "; reading from byte " + std::to_string(offset) +
                    bytes_of_tensor(tensor) + ". The destinations are partly written",
                error.system_error);
  }
}

std::int64_t OpenFiles::count() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.last_use > 0; });
}

std::int64_t OpenFiles::count_direct() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.is_direct; });
}

bool OpenFiles::is_direct(std::uint32_t file) const {
  const std::lock_guard lock(mutex_);
  return slots_[file].is_direct;
}

}  // namespace shardwright
