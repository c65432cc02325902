#include "storage/files/pending_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/random_number.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

/// How long to wait before asking again: for a reader, or whether the caller has been interrupted.
constexpr int wait_milliseconds = 20;

constexpr std::size_t longest_kept_name = 200;  ///< of 255 bytes that file systems allow

/// ".<name>.<16 digits>.partial", beside the file.
fs::path unlikely_name_beside(const fs::path& file) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(random_number()));
  const std::string kept = file.filename().native().substr(0, longest_kept_name);
  return file.parent_path() / ("." + kept + "." + digits + ".partial");
}

/// Whether a link is one of the kernel's own, to an open file rather than to a name.
bool is_of_kernel(const fs::path& link) {
  const fs::path folder = link.has_parent_path() ? link.parent_path() : ".";
  struct statfs system {};
  return uninterrupted([&] { return ::statfs(folder.c_str(), &system); }) == 0 &&
         system.f_type == PROC_SUPER_MAGIC;
}

/// The descriptor that a link such as /proc/self/fd/1 stands for; -1 if it is no descriptor of this process.
int own_descriptor(const fs::path& link) {
  std::error_code code;
  const fs::path self = fs::canonical("/proc/self", code);
  const fs::path folder = code ? fs::path() : fs::canonical(link.parent_path(), code);
  if (code || folder.filename() != "fd") return -1;
  const fs::path process = folder.parent_path();
  const bool is_thread = process.parent_path().filename() == "task";
  if ((is_thread ? process.parent_path().parent_path() : process) != self) return -1;
  const std::string name = link.filename().native();
  int descriptor = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), descriptor);
  return error == std::errc() && end == name.data() + name.size() ? descriptor : -1;
}

[[noreturn]] void fail_at(const fs::path& named, const fs::path& target, const char* what, int code) {
  const std::string leads_to = target == named ? "" : " (which leads to " + printable(target.native()) + ")";
  throw Error(ErrorKind::io, printable(named.native()) + leads_to + ": " + what + ": " + std::strerror(code),
              code);
}

/// Where a name leads.
struct NamedFile {
  enum class Kind { absent, regular, descriptor, other } kind = Kind::absent;
  fs::path path;  ///< links followed, but for one to a descriptor
  struct stat status {};
};

NamedFile file_named(const fs::path& named) {
  NamedFile file;
  file.path = named;
  const auto fail = [&](const char* what, int code) { fail_at(named, file.path, what, code); };
  for (;;) {
    // First as the kernel follows links: it refuses those that others have put into a shared folder, and
    // circles.
    const bool is_there = uninterrupted([&] { return ::stat(file.path.c_str(), &file.status); }) == 0;
    if (!is_there && errno != ENOENT) fail("cannot look at this file", errno);
    struct stat entry {};
    const bool has_entry = uninterrupted([&] { return ::lstat(file.path.c_str(), &entry); }) == 0;
    if (!has_entry && errno != ENOENT) fail("cannot look at this file", errno);
    if (has_entry && S_ISLNK(entry.st_mode)) {
      if (is_of_kernel(file.path)) {
        file.kind = NamedFile::Kind::descriptor;
        return file;
      }
      std::error_code code;
      const fs::path next = fs::read_symlink(file.path, code);
      if (code) fail("cannot read this link", code.value());
      file.path = file.path.parent_path() / next;  // `next` alone if it is absolute
      continue;
    }
    if (!file.path.has_filename()) fail("expected a file to write, found the name of a directory", EISDIR);
    if (!is_there) return file;
    if (S_ISDIR(file.status.st_mode)) fail("expected a file to write, found a directory", EISDIR);
    file.kind = S_ISREG(file.status.st_mode) ? NamedFile::Kind::regular : NamedFile::Kind::other;
    return file;
  }
}

}  // namespace

PendingFile::PendingFile(const fs::path& named, std::function<void()> check_for_interrupt)
    : named_(named), check_for_interrupt_(std::move(check_for_interrupt)) {
  const NamedFile file = file_named(named);
  target_ = file.path;
  switch (file.kind) {
    case NamedFile::Kind::descriptor:
      open_descriptor();
      break;
    case NamedFile::Kind::other:
      open_in_place();
      break;
    case NamedFile::Kind::absent:
      create(0666);
      break;
    case NamedFile::Kind::regular:
      if (uninterrupted([&] { return ::faccessat(AT_FDCWD, target_.c_str(), W_OK, AT_EACCESS); }) != 0)
        fail("cannot write to this file");
      create(file.status.st_mode & 0777);
      // Not all may give files away; what stays theirs has the permissions that creating it gave.
      if (::fchown(descriptor_, file.status.st_uid, file.status.st_gid) == 0)
        ::fchmod(descriptor_, file.status.st_mode & 0777);  // without the umask
      break;
  }
}

PendingFile::PendingFile(PendingFile&& other) noexcept
    : named_(std::move(other.named_)),
      target_(std::move(other.target_)),
      path_(std::exchange(other.path_, {})),
      check_for_interrupt_(std::move(other.check_for_interrupt_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

PendingFile::~PendingFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!path_.empty()) ::unlink(path_.c_str());
}

void PendingFile::create(unsigned mode) {
  do {
    path_ = unlikely_name_beside(target_);
    descriptor_ =
        uninterrupted([&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode); });
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) fail("cannot create this file");
}

void PendingFile::open_in_place() {
  // A pipe that nobody reads is asked again and again rather than waited for in the kernel, where nothing
  // would look for an interrupt.
  for (;;) {
    check();
    descriptor_ =
        uninterrupted([&] { return ::open(target_.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC); });
    if (descriptor_ >= 0) return;
    const int code = errno;
    struct stat found {};
    const bool is_pipe = ::stat(target_.c_str(), &found) == 0 && S_ISFIFO(found.st_mode);
    errno = code;
    if (code != ENXIO || !is_pipe) fail("cannot open this for writing");
    ::poll(nullptr, 0, wait_milliseconds);
  }
}

void PendingFile::open_descriptor() {
  const int own = own_descriptor(target_);
  descriptor_ = own >= 0 ? ::fcntl(own, F_DUPFD_CLOEXEC, 0) : uninterrupted([&] {
    return ::open(target_.c_str(), O_WRONLY | O_APPEND | O_NOCTTY | O_CLOEXEC);
  });
  if (descriptor_ < 0) fail("cannot open this for writing");
  if ((::fcntl(descriptor_, F_GETFL) & O_ACCMODE) == O_RDONLY) {
    ::close(std::exchange(descriptor_, -1));
    errno = EBADF;
    fail("expected a descriptor that is open for writing");
  }
}

void PendingFile::check() const {
  if (check_for_interrupt_) check_for_interrupt_();
}

void PendingFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(written));
      continue;
    }
    if (written == 0) errno = ENOSPC;
    if (errno == EINTR || errno == EAGAIN) {
      pollfd waiting{descriptor_, POLLOUT, 0};
      if (errno == EAGAIN) ::poll(&waiting, 1, wait_milliseconds);
      check();
      continue;
    }
    fail("cannot write");
  }
}

void PendingFile::resize(std::uint64_t bytes) {
  if (uninterrupted([&] { return ::ftruncate(descriptor_, static_cast<off_t>(bytes)); }) != 0)
    fail("cannot make this file as long as it is to be");
}

void PendingFile::close() {
  if (descriptor_ < 0) return;
  // Some file systems report a full disk only here. Interrupted or not, the descriptor is gone.
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail("cannot close");
}

void PendingFile::publish() {
  close();
  if (path_.empty()) return;
  struct stat found {};
  if (::lstat(target_.c_str(), &found) == 0 && !S_ISREG(found.st_mode)) {
    errno = EEXIST;
    fail(
        "expected a regular file or none in the place of the finished file, found something that came there");
  }
  if (std::rename(path_.c_str(), target_.c_str()) != 0) fail("cannot rename the finished file to this");
  path_.clear();
}

void PendingFile::fail(const char* what) const { fail_at(named_, target_, what, errno); }

bool is_written_into(const fs::path& named) {
  const NamedFile::Kind kind = file_named(named).kind;
  return kind == NamedFile::Kind::descriptor || kind == NamedFile::Kind::other;
}

void write_named_file(const fs::path& named, std::string_view bytes,
                      std::function<void()> check_for_interrupt) {
  PendingFile file(named, std::move(check_for_interrupt));
  file.append(bytes);
  file.publish();
}

}  // namespace shardwright
