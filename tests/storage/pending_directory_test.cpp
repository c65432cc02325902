#include "storage/pending_directory.h"

#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

std::set<std::string> names_in(const fs::path& directory) {
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory))
    names.insert(entry.path().filename().native());
  return names;
}

using Names = std::set<std::string>;

template <typename Work>
Error error_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  }
  return {ErrorKind::argument, "no error"};
}

TEST(PendingDirectory, TakesItsNameWhenPublishedAndLeavesNothingBeside) {
  const TemporaryDirectory folder;
  PendingDirectory pending(folder / "a/checkpoint/");
  write_file(pending.path() / "deep/x.safetensors", "new");
  EXPECT_FALSE(fs::exists(folder / "a/checkpoint"));
  EXPECT_FALSE(pending.replaces());
  pending.publish();
  EXPECT_EQ(read_file(folder / "a/checkpoint/deep/x.safetensors"), "new");
  EXPECT_EQ(names_in(folder / "a"), Names{"checkpoint"});
}

TEST(PendingDirectory, ReplacesACheckpointAsAWholeAndNotBefore) {
  const TemporaryDirectory folder;
  write_file(folder / "checkpoint/old.safetensors", "old");
  PendingDirectory pending(folder / "checkpoint");
  EXPECT_TRUE(pending.replaces());
  write_file(pending.path() / "new.safetensors", "new");
  EXPECT_EQ(read_file(folder / "checkpoint/old.safetensors"), "old");
  pending.publish();
  EXPECT_EQ(names_in(folder / "checkpoint"), Names{"new.safetensors"});
  EXPECT_EQ(names_in(folder.path), Names{"checkpoint"});
}

TEST(PendingDirectory, AbandonedLeavesTheOldOneAndNothingElse) {
  const TemporaryDirectory folder;
  write_file(folder / "checkpoint/old.safetensors", "old");
  {
    const PendingDirectory pending(folder / "checkpoint");
    write_file(pending.path() / "new.safetensors", "new");
  }
  EXPECT_EQ(names_in(folder / "checkpoint"), Names{"old.safetensors"});
  EXPECT_EQ(names_in(folder.path), Names{"checkpoint"});
}

TEST(PendingDirectory, ASecondSaveToTheNameIsRefusedUntilTheFirstEnds) {
  const TemporaryDirectory folder;
  std::optional<PendingDirectory> first(std::in_place, folder / "checkpoint");
  const Error error = error_of([&] { PendingDirectory(folder / "checkpoint"); });
  EXPECT_EQ(error.system_error, EBUSY);
  EXPECT_NE(std::string(error.what()).find("another save"), std::string::npos) << error.what();
  EXPECT_TRUE(fs::exists(first->path()));
  PendingDirectory(folder / "other");
  first.reset();
  PendingDirectory(folder / "checkpoint");
}

TEST(PendingDirectory, CleansUpAfterDeadSavesToThatNameOnly) {
  const TemporaryDirectory folder;
  write_file(folder / ".checkpoint.saving-0123/x.safetensors", "half");
  write_file(folder / ".checkpoint.lock", "");
  write_file(folder / ".other.saving-0123/x.safetensors", "another's");
  PendingDirectory pending(folder / "checkpoint");
  EXPECT_FALSE(fs::exists(folder / ".checkpoint.saving-0123"));
  pending.publish();
  EXPECT_EQ(names_in(folder.path), (Names{".other.saving-0123", "checkpoint"}));
}

TEST(PendingDirectory, BringsBackWhatASaveThatDiedHadMovedAside) {
  const TemporaryDirectory folder;
  write_file(folder / ".checkpoint.replaced-0123/old.safetensors", "old");
  PendingDirectory(folder / "checkpoint");
  EXPECT_EQ(read_file(folder / "checkpoint/old.safetensors"), "old");
  EXPECT_EQ(names_in(folder.path), Names{"checkpoint"});
}

TEST(PendingDirectory, RefusesAFileAndADirectoryOfOtherThings) {
  const TemporaryDirectory folder;
  write_file(folder / "file", "text");
  EXPECT_EQ(error_of([&] { PendingDirectory(folder / "file"); }).system_error, ENOTDIR);
  EXPECT_EQ(error_of([&] { PendingDirectory(folder / "file/checkpoint"); }).system_error, ENOTDIR);
  write_file(folder / "home/thesis.tex", "text");
  EXPECT_EQ(error_of([&] { PendingDirectory(folder / "home"); }).kind, ErrorKind::argument);
  EXPECT_EQ(names_in(folder.path), (Names{"file", "home"}));
}

TEST(PendingDirectory, FollowsALinkAndReplacesWhatItPointsTo) {
  const TemporaryDirectory folder;
  fs::create_directory(folder / "real");
  fs::create_directory_symlink(folder / "real", folder / "link");
  PendingDirectory pending(folder / "link");
  write_file(pending.path() / "x.safetensors", "new");
  pending.publish();
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "real/x.safetensors"), "new");
}

TEST(RemoveCheckpoint, RemovesItAndWhatADeadRemovalLeft) {
  const TemporaryDirectory folder;
  write_file(folder / "checkpoint/x.safetensors", "old");
  write_file(folder / ".before.removed-01/x.safetensors", "old");
  write_file(folder / "other/x.safetensors", "kept");
  remove_checkpoint(folder / "checkpoint");
  EXPECT_EQ(names_in(folder.path), Names{"other"});
}

}  // namespace
}  // namespace shardwright
