#include "storage/files/pending_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "planner/error.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

void put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

std::ptrdiff_t entries_of(const fs::path& directory) {
  return std::distance(fs::directory_iterator(directory), {});
}

struct stat status_of(const fs::path& path) {
  struct stat status {};
  EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
  return status;
}

int errno_of(const fs::path& path) {
  try {
    write_named_file(path, "new");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::io);
    EXPECT_NE(std::string(error.what()).find(path.native()), std::string::npos) << error.what();
    return error.system_error;
  }
  return 0;
}

/// Reads all of a pipe, in a thread of its own.
struct Reader {
  explicit Reader(const fs::path& pipe)
      : thread([this, pipe] {
          std::ifstream file(pipe);
          text.assign(std::istreambuf_iterator<char>(file), {});
        }) {}
  std::string all() {
    thread.join();
    return text;
  }
  std::string text;
  std::thread thread;
};

TEST(pending_file, takes_its_name_when_all_is_there_and_nothing_else_is_left) {
  const TemporaryDirectory directory;
  PendingFile file(directory / "plan");
  file.append("all ");
  EXPECT_FALSE(fs::exists(directory / "plan"));
  file.append("of it");
  file.publish();
  EXPECT_EQ(read_file(directory / "plan"), "all of it");
  EXPECT_EQ(entries_of(directory.path), 1);
}

TEST(pending_file, that_is_not_published_leaves_what_was_there) {
  const TemporaryDirectory directory;
  put(directory / "plan", "old");
  { PendingFile(directory / "plan").append("new"); }
  EXPECT_EQ(read_file(directory / "plan"), "old");
  EXPECT_EQ(entries_of(directory.path), 1);
}

TEST(pending_file, leaves_a_strangers_file_that_ends_in_partial) {
  const TemporaryDirectory directory;
  put(directory / "plan.partial", "mine");
  write_named_file(directory / "plan", "new");
  EXPECT_EQ(read_file(directory / "plan.partial"), "mine");
  EXPECT_EQ(read_file(directory / "plan"), "new");
}

TEST(pending_file, keeps_permissions_and_owner_of_what_it_replaces) {
  const TemporaryDirectory directory;
  put(directory / "plan", "old");
  ASSERT_EQ(::chmod((directory / "plan").c_str(), 0662), 0);
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown((directory / "plan").c_str(), 1234, 4321), 0);
  }
  const struct stat before = status_of(directory / "plan");
  write_named_file(directory / "plan", "new");
  const struct stat after = status_of(directory / "plan");
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(after.st_uid, before.st_uid);
  EXPECT_EQ(after.st_gid, before.st_gid);
  EXPECT_EQ(read_file(directory / "plan"), "new");
}

TEST(pending_file, refuses_a_file_that_may_not_be_written) {
  const TemporaryDirectory directory;
  put(directory / "plan", "old");
  ASSERT_EQ(::chmod((directory / "plan").c_str(), 0444), 0);
  if (::access((directory / "plan").c_str(), W_OK) == 0) GTEST_SKIP() << "this user may write everything";
  EXPECT_EQ(errno_of(directory / "plan"), EACCES);
  EXPECT_EQ(read_file(directory / "plan"), "old");
}

TEST(pending_file, refuses_directories_and_what_is_in_none) {
  const TemporaryDirectory directory;
  EXPECT_EQ(errno_of(directory.path), EISDIR);
  EXPECT_EQ(errno_of(directory / "new/"), EISDIR);
  EXPECT_EQ(errno_of(directory / "none/plan"), ENOENT);
  EXPECT_EQ(entries_of(directory.path), 0);
}

TEST(pending_file, writes_into_a_named_pipe_once_somebody_reads) {
  const TemporaryDirectory directory;
  const fs::path pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string much(300'000, 'x');  // more than a pipe holds
  Reader reader(pipe);
  write_named_file(pipe, much);
  EXPECT_EQ(reader.all(), much);
  EXPECT_TRUE(S_ISFIFO(status_of(pipe).st_mode));
  EXPECT_EQ(entries_of(directory.path), 1);
}

TEST(pending_file, that_waits_for_a_reader_can_be_interrupted) {
  const TemporaryDirectory directory;
  const fs::path pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  int asked = 0;
  const auto check = [&] {
    if (++asked == 3) throw std::runtime_error("Ctrl-C");
  };
  EXPECT_THROW(PendingFile(pipe, check), std::runtime_error);
  // Somebody reads at first, and then no more.
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  asked = 0;
  EXPECT_THROW(write_named_file(pipe, std::string(300'000, 'x'), check), std::runtime_error);
  ::close(reader);
  EXPECT_TRUE(S_ISFIFO(status_of(pipe).st_mode));
}

TEST(pending_file, writes_into_a_device) {
  const TemporaryDirectory directory;
  const fs::path device = directory / "null";
  if (::mknod(device.c_str(), S_IFCHR | 0666, makedev(1, 3)) != 0)
    GTEST_SKIP() << "no devices may be made here";
  if (const int opened = ::open(device.c_str(), O_WRONLY); opened < 0) {
    GTEST_SKIP() << "devices are not opened here";
  } else {
    ::close(opened);
  }
  write_named_file(device, "gone");
  const struct stat after = status_of(device);
  EXPECT_TRUE(S_ISCHR(after.st_mode));
  EXPECT_EQ(after.st_rdev, makedev(1, 3));
  EXPECT_EQ(entries_of(directory.path), 1);
}

TEST(pending_file, says_when_a_device_is_full) {
  const TemporaryDirectory directory;
  const fs::path device = directory / "full";
  if (::mknod(device.c_str(), S_IFCHR | 0666, makedev(1, 7)) != 0)
    GTEST_SKIP() << "no devices may be made here";
  if (::access(device.c_str(), W_OK) != 0) GTEST_SKIP() << "devices are not opened here";
  EXPECT_EQ(errno_of(device), ENOSPC);
  EXPECT_TRUE(S_ISCHR(status_of(device).st_mode));
}

TEST(pending_file, refuses_a_socket_and_leaves_it) {
  const TemporaryDirectory directory;
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT((directory / "socket").native().size(), sizeof address.sun_path);
  (directory / "socket").native().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(errno_of(directory / "socket"), ENXIO);
  EXPECT_TRUE(S_ISSOCK(status_of(directory / "socket").st_mode));
  ::close(socket);
}

TEST(pending_file, replaces_what_a_link_points_to_and_keeps_the_link) {
  const TemporaryDirectory directory;
  const TemporaryDirectory elsewhere;
  put(elsewhere / "plan", "old");
  fs::create_symlink(elsewhere / "plan", directory / "second");
  fs::create_symlink("second", directory / "first");
  write_named_file(directory / "first", "new");
  EXPECT_EQ(read_file(elsewhere / "plan"), "new");
  EXPECT_EQ(fs::read_symlink(directory / "first"), "second");
  EXPECT_EQ(fs::read_symlink(directory / "second"), elsewhere / "plan");
  EXPECT_EQ(entries_of(directory.path), 2);
  EXPECT_EQ(entries_of(elsewhere.path), 1);
}

TEST(pending_file, makes_what_a_dangling_link_points_to) {
  const TemporaryDirectory directory;
  fs::create_directory(directory / "folder");
  fs::create_symlink("folder/plan", directory / "link");
  write_named_file(directory / "link", "new");
  EXPECT_TRUE(fs::is_symlink(directory / "link"));
  EXPECT_EQ(read_file(directory / "folder/plan"), "new");
  fs::create_symlink("circle", directory / "circle");
  EXPECT_EQ(errno_of(directory / "circle"), ELOOP);
}

TEST(pending_file, of_a_descriptor_goes_on_where_that_stands) {
  const TemporaryDirectory directory;
  const fs::path log = directory / "log";
  put(log, "before\n");
  const int descriptor = ::open(log.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  fs::create_symlink("/dev/fd/" + std::to_string(descriptor), directory / "link");
  const ino_t inode = status_of(log).st_ino;
  write_named_file("/proc/self/fd/" + std::to_string(descriptor), "one\n");
  write_named_file("/dev/fd/" + std::to_string(descriptor), "two\n");
  write_named_file(directory / "link", "three\n");
  EXPECT_EQ(::write(descriptor, "after\n", 6), 6);
  ::close(descriptor);
  EXPECT_EQ(read_file(log), "before\none\ntwo\nthree\nafter\n");
  EXPECT_EQ(status_of(log).st_ino, inode);
  EXPECT_EQ(entries_of(directory.path), 2);
}

TEST(pending_file, of_a_descriptor_may_be_a_socket_and_must_be_open_for_writing) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  write_named_file("/dev/fd/" + std::to_string(ends[0]), "sent");
  char got[4] = {};
  EXPECT_EQ(::read(ends[1], got, 4), 4);
  EXPECT_EQ(std::string(got, 4), "sent");
  ::close(ends[0]);
  ::close(ends[1]);
  const int zero = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(errno_of("/dev/fd/" + std::to_string(zero)), EBADF);
  ::close(zero);
}

TEST(pending_file, that_finds_a_pipe_in_its_place_at_the_end_leaves_that) {
  const TemporaryDirectory directory;
  PendingFile file(directory / "plan");
  file.append("new");
  ASSERT_EQ(::mkfifo((directory / "plan").c_str(), 0600), 0);
  EXPECT_THROW(file.publish(), Error);
  EXPECT_TRUE(S_ISFIFO(status_of(directory / "plan").st_mode));
}

TEST(pending_file, knows_what_it_would_write_into) {
  const TemporaryDirectory directory;
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  put(directory / "file", "");
  fs::create_symlink("pipe", directory / "link");
  EXPECT_TRUE(is_written_into(directory / "pipe"));
  EXPECT_TRUE(is_written_into(directory / "link"));
  EXPECT_TRUE(is_written_into("/dev/fd/0"));
  EXPECT_FALSE(is_written_into(directory / "file"));
  EXPECT_FALSE(is_written_into(directory / "none"));
}

}  // namespace
}  // namespace shardwright
