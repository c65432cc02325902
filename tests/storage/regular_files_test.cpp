// What is no regular file is refused by name before it is opened.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <future>
#include <string>
#include <string_view>
#include <thread>

#include "storage/files/input_file.h"
#include "storage/files/page_cache.h"
#include "storage/format/manifest.h"
#include "storage/format/read_catalog.h"
#include "storage/format/text_file.h"
#include "storage/tools/verify.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

void make_socket(const std::filesystem::path& path) {
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_GE(descriptor, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.native().size(), sizeof address.sun_path);
  path.native().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ::close(descriptor);
}

/// Puts everything that is no regular file in the place of `path`, one after the other, and links to it.
void in_place_of(const std::filesystem::path& path, const std::function<void(std::string_view)>& check) {
  const std::filesystem::path aside = path.parent_path() / "aside";
  const auto both = [&](std::string_view what) {
    check(what);
    std::filesystem::rename(path, aside);
    std::filesystem::create_symlink(aside, path);
    check(what);
    std::filesystem::remove(path);
    std::filesystem::remove_all(aside);
  };
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  both("a named pipe");
  std::filesystem::create_directory(path);
  both("a directory");
  make_socket(path);
  both("a socket");
  std::filesystem::create_symlink("/dev/zero", path);
  check("a device");
  std::filesystem::remove(path);
}

TEST(regular_files, what_is_none_is_told_by_its_name) {
  const TemporaryDirectory directory;
  write_file(directory / "file", "text");
  in_place_of(directory / "file", [&](std::string_view what) {
    const std::string path = (directory / "file").string();
    expect_error(ErrorKind::io, {path, "expected a regular file, found", what},
                 [&] { InputFile file(directory / "file"); });
    expect_error(ErrorKind::io, {path, "expected a regular file, found", what},
                 [&] { read_text(directory / "file", 100); });
    expect_error(ErrorKind::io, {path, "expected a regular file, found", what},
                 [&] { size_of_file(directory / "file"); });
  });
}

TEST(regular_files, a_link_to_one_is_one) {
  const TemporaryDirectory directory;
  write_file(directory / "file", "text");
  std::filesystem::create_symlink("file", directory / "link");
  EXPECT_EQ(read_text(directory / "link", 100), "text");
  EXPECT_EQ(size_of_file(directory / "link"), 4U);
}

TEST(regular_files, every_file_of_a_hugging_face_checkpoint_has_to_be_one) {
  const TemporaryDirectory directory;
  const auto write = [&] {
    write_file(directory / "model-1.safetensors", one_tensor_file("a"));
    write_file(directory / "config.json", "{}");
    write_file(directory / "model.safetensors.index.json",
               R"({"metadata":{},"weight_map":{"a":"model-1.safetensors"}})");
  };
  write();
  EXPECT_EQ(read_catalog(directory.path).tensors.size(), 1U);
  for (const char* name : {"model-1.safetensors", "config.json", "model.safetensors.index.json",
                           "shardwright.checksums", "shardwright.manifest"}) {
    in_place_of(directory / name, [&](std::string_view what) {
      expect_error(ErrorKind::io, {name, "expected a regular file, found", what}, [&] {
        if (has_manifest(directory.path)) read_manifest(directory.path);
        read_catalog(directory.path);
      });
      // Damage of a file is a finding; what makes the whole unreadable is an error.
      try {
        EXPECT_FALSE(verify_checkpoint(directory.path).problems.empty()) << name << what;
      } catch (const Error& error) {
        EXPECT_NE(std::string_view(error.what()).find(name), std::string_view::npos) << error.what();
      }
    });
    write();
  }
}

TEST(regular_files, a_pipe_is_not_opened_and_so_nobody_who_writes_to_it_goes_on) {
  const TemporaryDirectory directory;
  const std::filesystem::path pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::promise<int> opened;
  std::future<int> descriptor = opened.get_future();
  std::thread writer([&] { opened.set_value(::open(pipe.c_str(), O_WRONLY | O_CLOEXEC)); });
  for (int i = 0; i < 200; ++i) EXPECT_THROW(InputFile file(pipe), Error);
  EXPECT_EQ(descriptor.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  writer.join();
  ::close(descriptor.get());
  ::close(reader);
}

TEST(regular_files, a_link_that_leads_nowhere_in_the_place_of_the_manifest_is_told) {
  const TemporaryDirectory directory;
  write_file(directory / "model.safetensors", one_tensor_file("a"));
  EXPECT_FALSE(has_manifest(directory.path));
  std::filesystem::create_symlink("nowhere", directory / manifest_name);
  ASSERT_TRUE(has_manifest(directory.path));
  expect_error(ErrorKind::not_found, {manifest_name}, [&] { read_manifest(directory.path); });
}

TEST(regular_files, a_manifest_that_the_system_will_not_tell_of_is_not_taken_for_none) {
  const TemporaryDirectory directory;
  std::filesystem::create_symlink(directory / "circle", directory / "circle");
  expect_error(ErrorKind::io, {"circle", manifest_name}, [&] { has_manifest(directory / "circle"); });
}

TEST(regular_files, files_of_a_manifest_have_to_be_some) {
  const TemporaryDirectory directory;
  Manifest manifest;
  manifest.files.push_back({"rank-0.bin", 4, 0, 0});
  write_file(directory / "rank-0.bin", "data");
  EXPECT_EQ(catalog_of(manifest, directory.path).files.size(), 1U);
  in_place_of(directory / "rank-0.bin", [&](std::string_view what) {
    expect_error(ErrorKind::malformed, {"rank-0.bin", "expected a regular file, found", what},
                 [&] { catalog_of(manifest, directory.path); });
  });
  expect_error(ErrorKind::malformed, {"rank-0.bin", "No such file"},
               [&] { catalog_of(manifest, directory.path); });
}

TEST(regular_files, what_is_read_past_the_page_cache_is_the_file_that_was_opened) {
  const TemporaryDirectory directory;
  write_file(directory / "file", std::string(8192, 'a'));
  const InputFile file(directory / "file");
  const int same = open_direct(file.path().c_str(), file.descriptor());
  if (same < 0) GTEST_SKIP() << "no O_DIRECT on this file system";
  ::close(same);
  write_file(directory / "other", std::string(8192, 'b'));
  std::filesystem::rename(directory / "other", directory / "file");
  EXPECT_EQ(open_direct(file.path().c_str(), file.descriptor()), -1);
}

}  // namespace
}  // namespace shardwright
