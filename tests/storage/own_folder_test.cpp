#include "storage/files/own_folder.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "tests/storage/checkpoint_files.h"
#include "tests/storage/child_processes.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

/// A folder for temporary files that only the test uses.
class OwnFolderTest : public testing::Test {
 protected:
  OwnFolderTest() {
    if (const char* const before = std::getenv("TMPDIR")) before_ = before;
    ::setenv("TMPDIR", place_.path.c_str(), 1);
  }
  ~OwnFolderTest() override {
    if (before_) {
      ::setenv("TMPDIR", before_->c_str(), 1);
    } else {
      ::unsetenv("TMPDIR");
    }
  }

  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(place_.path))
      names.insert(entry.path().lexically_relative(place_.path).native());
    return names;
  }

  TemporaryDirectory place_;
  std::optional<std::string> before_;
};

/// A process that has made a folder with a file in it and waits to be killed; and the folder's path.
struct Maker {
  pid_t process;
  fs::path folder;
};

Maker making() {
  int told[2];
  EXPECT_EQ(::pipe(told), 0);
  const pid_t child = in_child([&] {
    const OwnFolder folder;
    write_file(folder.path() / "file", "x");
    const std::string path = folder.path().string();
    if (::write(told[1], path.data(), path.size()) < 0) return false;
    ::close(told[1]);
    ::pause();
    return true;
  });
  ::close(told[1]);
  std::string path;
  char part[256];
  for (ssize_t got = 0; (got = ::read(told[0], part, sizeof part)) > 0;)
    path.append(part, static_cast<std::size_t>(got));
  ::close(told[0]);
  return {child, path};
}

void kill(const Maker& maker) {
  ::kill(maker.process, SIGKILL);
  EXPECT_FALSE(ended_well(maker.process));
}

TEST_F(OwnFolderTest, WhatAKilledProcessLeftIsRemovedAndWhatALivingOneHasStays) {
  const Maker dead = making();
  const Maker living = making();
  kill(dead);
  EXPECT_TRUE(fs::exists(dead.folder / "file"));
  fs::path own;
  {
    const OwnFolder folder;
    own = folder.path();
    EXPECT_FALSE(fs::exists(dead.folder.parent_path()));
    EXPECT_TRUE(fs::exists(living.folder / "file"));
    remove_folders_of_dead_processes();
    EXPECT_TRUE(fs::is_empty(own));
  }
  EXPECT_FALSE(fs::exists(own.parent_path()));
  EXPECT_TRUE(fs::exists(living.folder / "file"));
  kill(living);
  remove_folders_of_dead_processes();
  EXPECT_TRUE(names().empty());
}

/// A folder of somebody's with such a name, one that is being made, and a link to a dead one's elsewhere.
TEST_F(OwnFolderTest, WhatWasNotMadeHereStays) {
  fs::create_directory(place_ / "shardwright-notes");
  write_file(place_ / "shardwright-notes/lock", "");
  write_file(place_ / "shardwright-file", "");
  fs::create_directory(place_ / "elsewhere");
  write_file(place_ / "elsewhere/.shardwright.process", "");
  fs::create_directory_symlink(place_ / "elsewhere", place_ / "shardwright-link");
  fs::create_directory(place_ / "shardwright-linked");
  fs::create_symlink(place_ / "elsewhere/.shardwright.process",
                     place_ / "shardwright-linked/.shardwright.process");
  const std::set<std::string> before = names();
  remove_folders_of_dead_processes();
  EXPECT_EQ(names(), before);
}

}  // namespace
}  // namespace shardwright
