#include "storage/format/pending_checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <optional>
#include <set>
#include <thread>

#include "storage/format/checkpoint_place.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;
using Names = std::set<std::string>;

/// The names of all that lies in a directory and its folders.
Names names_in(const fs::path& directory) {
  Names names;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_directory() || entry.is_symlink())
      names.insert(entry.path().lexically_relative(directory).native());
  }
  return names;
}

/// A sharded checkpoint of these files, and nothing in them.
std::string manifest_naming(const std::vector<std::string>& files, std::uint64_t order = 0) {
  Manifest manifest;
  for (const std::string& file : files) manifest.files.push_back({file, 3, 0, 0});
  manifest.order = order;
  return encode_manifest(manifest);
}

void write_sharded(const fs::path& directory, const std::vector<std::string>& files) {
  for (const std::string& file : files) write_file(directory / file, "old");
  write_file(directory / manifest_name, manifest_naming(files));
}

void write_index(const fs::path& directory, const std::vector<std::string>& files) {
  std::string map;
  for (const std::string& file : files) {
    write_file(directory / file, "old");
    map += (map.empty() ? "\"" : ",\"") + file + "\": \"" + file + "\"";
  }
  write_file(directory / hf_index_name, "{\"weight_map\": {" + map + "}}");
}

void save(PendingCheckpoint& pending, const std::vector<std::string>& files) {
  for (const std::string& file : files) write_file(pending.path() / file, "new");
  write_file(pending.path() / manifest_name, manifest_naming(files));
}

constexpr CheckpointKind sharded = CheckpointKind::sharded;

TEST(PendingCheckpoint, IsThereWhenPublishedAndLeavesNothingBeside) {
  const TemporaryDirectory folder;
  PendingCheckpoint pending(folder / "a/checkpoint/", sharded);
  save(pending, {"x", "y"});
  EXPECT_FALSE(pending.replaces());
  EXPECT_EQ(pending.final_path(), fs::canonical(folder / "a/checkpoint"));
  EXPECT_FALSE(fs::exists(folder / "a/checkpoint/y"));
  pending.publish(manifest_name);
  EXPECT_EQ(read_file(folder / "a/checkpoint/x"), "new");
  EXPECT_EQ(names_in(folder.path),
            (Names{"a/checkpoint/x", "a/checkpoint/y", "a/checkpoint/shardwright.manifest"}));
}

TEST(PendingCheckpoint, RemovesWhatTheManifestOfTheReplacedOneNamesAndNothingElse) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"old-1", "old-2"});
  write_file(folder / "optimizer.pt", "mine");
  write_file(folder / ".git/HEAD", "mine");
  write_file(folder / "old-3", "mine");
  fs::create_symlink("old-3", folder / "link");
  PendingCheckpoint pending(folder.path, sharded);
  EXPECT_TRUE(pending.replaces());
  save(pending, {"new-1"});
  EXPECT_EQ(read_file(folder / "old-1"), "old");
  pending.publish(manifest_name);
  EXPECT_EQ(names_in(folder.path),
            (Names{".git/HEAD", "link", "new-1", "old-3", "optimizer.pt", manifest_name}));
}

TEST(PendingCheckpoint, AbandonedLeavesTheOldOneAndNoNewDirectories) {
  const TemporaryDirectory folder;
  write_sharded(folder / "checkpoint", {"old"});
  const Names before = names_in(folder.path);
  {
    PendingCheckpoint pending(folder / "checkpoint", sharded);
    save(pending, {"x"});
  }
  { const PendingCheckpoint made(folder / "a/b", sharded); }
  EXPECT_EQ(names_in(folder.path), before);
  EXPECT_FALSE(fs::exists(folder / "a"));
}

TEST(PendingCheckpoint, AbandonedWhileAnotherThreadPublishesIsOneOrTheOther) {
  // An interrupt of the main thread gives up a save that the background publishes: which comes first is
  // chance.
  int published = 0;
  for (int round = 0; round < 200; ++round) {
    const TemporaryDirectory folder;
    write_sharded(folder.path, {"old"});
    PendingCheckpoint pending(folder.path, sharded);
    save(pending, {"x", "y"});
    bool failed = false;
    std::thread background([&] {
      try {
        pending.publish(manifest_name);
      } catch (const Error&) {
        failed = true;
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(round * 7));
    pending.abandon();
    background.join();
    EXPECT_EQ(names_in(folder.path),
              failed ? (Names{"old", manifest_name}) : (Names{"x", "y", manifest_name}));
    published += !failed;
  }
  RecordProperty("published", published);
}

TEST(PendingCheckpoint, ASecondSaveToTheDirectoryIsRefusedUntilTheFirstEnds) {
  const TemporaryDirectory folder;
  std::optional<PendingCheckpoint> first(std::in_place, folder / "checkpoint", sharded);
  const Error error = error_of([&] { PendingCheckpoint(folder / "checkpoint", sharded); });
  EXPECT_EQ(error.system_error, EBUSY);
  EXPECT_NE(std::string(error.what()).find("another save"), std::string::npos) << error.what();
  PendingCheckpoint(folder / "checkpoint.saving-b", sharded);  // begins alike, and is another one's
  EXPECT_TRUE(fs::exists(first->path()));
  first.reset();
  PendingCheckpoint(folder / "checkpoint", sharded);
}

std::string inode_of(const fs::path& path) {
  struct stat status {};
  EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
  return std::to_string(status.st_ino);
}

/// What a save that was killed before it committed leaves: a plan, and some names given.
void die_before_the_commit(const fs::path& directory, const std::vector<std::string>& files,
                           const std::vector<std::string>& removed) {
  const fs::path saving = directory / unfinished_save_name;
  write_file(saving / "lock", "");
  std::string plan = inode_of(saving / "lock") + '\0' + std::string(manifest_name) + '\0';
  for (const std::string& name : removed) {
    if (!fs::exists(directory / name)) write_file(directory / name, "old");
    plan += inode_of(directory / name) + ' ' + name + '\0';
  }
  write_file(saving / "plan", plan + '\0');
  write_file(saving / "files" / manifest_name, manifest_naming(files));
  for (const std::string& file : files) {
    write_file(saving / "files" / file, "new");
    fs::create_hard_link(saving / "files" / file, directory / file);
  }
}

TEST(PendingCheckpoint, UndoesADeadSaveThatHadNotCommitted) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"old"});
  write_file(folder / "config.json", "mine");
  const Names before = names_in(folder.path);
  die_before_the_commit(folder.path, {"new-1", "new-2"}, {"old"});
  // It had replaced a file, too.
  write_file(folder / ".shardwright.saving/previous/config.json", "mine");
  write_file(folder / "config.json", "half");
  PendingCheckpoint(folder.path, sharded);
  EXPECT_EQ(names_in(folder.path), before);
  EXPECT_EQ(read_file(folder / "config.json"), "mine");
  EXPECT_EQ(read_file(folder / "old"), "old");
}

TEST(PendingCheckpoint, LeavesAStrangersFileOfANameThatADeadSaveWanted) {
  const TemporaryDirectory folder;
  die_before_the_commit(folder.path, {"new-1", "new-2"}, {});
  fs::remove(folder / "new-1");
  write_file(folder / "new-1", "a stranger's");
  PendingCheckpoint(folder.path, sharded);
  EXPECT_EQ(names_in(folder.path), Names{"new-1"});
  EXPECT_EQ(read_file(folder / "new-1"), "a stranger's");
}

TEST(PendingCheckpoint, CompletesADeadSaveThatHadCommitted) {
  const TemporaryDirectory folder;
  write_file(folder / "old", "old");
  write_file(folder / "mine", "mine");
  die_before_the_commit(folder.path, {"new"}, {"old"});
  fs::rename(folder / ".shardwright.saving/files/shardwright.manifest", folder / manifest_name);
  clean_up_after_dead_save(folder.path);
  EXPECT_EQ(names_in(folder.path), (Names{"mine", "new", manifest_name}));
}

TEST(PendingCheckpoint, CompletingRemovesNothingThatAManifestListsByNow) {
  const TemporaryDirectory folder;
  die_before_the_commit(folder.path, {"new"}, {"old"});
  fs::remove(folder / ".shardwright.saving/files/shardwright.manifest");
  write_sharded(folder.path, {"old"});  // somebody has brought the old one back
  clean_up_after_dead_save(folder.path);
  EXPECT_TRUE(fs::exists(folder / "old"));
}

TEST(PendingCheckpoint, ACutPlanIsNoPlan) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"old"});
  const Names before = names_in(folder.path);
  const fs::path saving = folder / unfinished_save_name;
  write_file(saving / "lock", "");
  write_file(saving / "plan", inode_of(saving / "lock") + '\0' + std::string(manifest_name) + '\0' +
                                  inode_of(folder / "old") + " old" + '\0');
  clean_up_after_dead_save(folder.path);
  EXPECT_EQ(names_in(folder.path), before);
}

TEST(PendingCheckpoint, APlanThatCameWithAnArchiveIsNoPlan) {
  const TemporaryDirectory folder;
  write_file(folder / "step/optimizer.pt", "mine");
  write_file(folder / "victim", "mine");
  const Names before = names_in(folder.path);
  const std::string victim = (folder / "victim").native();
  const fs::path saving = folder / "step" / unfinished_save_name;
  for (const bool knows_inodes : {false, true}) {
    write_file(saving / "lock", "");
    const auto inode = [&](const fs::path& path) { return knows_inodes ? inode_of(path) : "123"; };
    write_file(saving / "plan", inode(saving / "lock") + '\0' + ".\0"s + inode(victim) + " " + victim + '\0' +
                                    inode(victim) + " ../victim" + '\0' + inode(victim) + " optimizer.pt" +
                                    '\0' + '\0');
    clean_up_after_dead_save(folder / "step");
    EXPECT_EQ(names_in(folder.path), before);
  }
}

TEST(PendingCheckpoint, WhatSomebodyWroteOverAFileThatADeadSaveGaveOrWasToRemoveStays) {
  const TemporaryDirectory folder;
  write_file(folder / "mine", "mine");
  die_before_the_commit(folder.path, {"new"}, {"old"});
  const fs::path saving = folder / unfinished_save_name;
  // It had replaced this one, and somebody has edited it since, as editors do: by a rename.
  write_file(saving / "files/config.json", "of the save");
  write_file(saving / "previous/config.json", "of before");
  write_file(folder / "config.json", "edited");
  PendingCheckpoint(folder.path, sharded);
  EXPECT_EQ(read_file(folder / "config.json"), "edited");
  EXPECT_FALSE(fs::exists(folder / "new"));

  // Committed, and somebody has written a file of a name that goes.
  die_before_the_commit(folder.path, {"new"}, {"old"});
  fs::rename(saving / "files" / manifest_name, folder / manifest_name);
  write_file(folder / "another", "mine");
  fs::rename(folder / "another", folder / "old");
  clean_up_after_dead_save(folder.path);
  EXPECT_EQ(read_file(folder / "old"), "mine");
  EXPECT_EQ(names_in(folder.path), (Names{"config.json", "mine", "new", "old", manifest_name}));
}

TEST(PendingCheckpoint, WhatSomebodyWroteOverAFileOfTheReplacedOneStays) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"a", "b"});
  write_file(folder / "b", "a stranger's");
  fs::remove(folder / "a");
  fs::create_directory(folder / "a");  // and even this ends no save
  for (const char* name : {"x", "y"}) {
    PendingCheckpoint pending(folder.path, sharded);
    save(pending, {name});
    pending.publish(manifest_name);
  }
  EXPECT_EQ(names_in(folder.path), (Names{"b", "y", manifest_name}));
  EXPECT_EQ(read_file(folder / "b"), "a stranger's");
  EXPECT_TRUE(fs::exists(folder / "a"));
}

TEST(PendingCheckpoint, TimesTellOfFilesWhoseNamesOthersUseAndOfNoOthers) {
  const TemporaryDirectory folder;
  const std::string shard = "rank-00000-00000-tag.safetensors";
  const std::string with_torchs_name = "shard-00001-model-00001-of-00001.safetensors";
  write_sharded(folder.path, {shard, with_torchs_name});
  for (const std::string& name : {shard, with_torchs_name})
    fs::last_write_time(folder / name, fs::file_time_type::clock::now() + std::chrono::hours(1));
  PendingCheckpoint pending(folder.path, sharded, true);
  save(pending, {"new"});
  pending.publish(manifest_name);
  EXPECT_EQ(names_in(folder.path),
            (Names{"new", manifest_name}));  // overwrite=True replaces what others wrote

  write_sharded(folder / "step", {shard, with_torchs_name});
  for (const std::string& name : {shard, with_torchs_name})
    fs::last_write_time(folder / "step" / name, fs::file_time_type::clock::now() + std::chrono::hours(1));
  const Names before = names_in(folder / "step");
  const Error error = error_of([&] { remove_checkpoint(folder / "step"); });
  EXPECT_EQ(error.system_error, EEXIST);
  EXPECT_NE(std::string(error.what()).find("\"" + with_torchs_name + "\" has been changed"),
            std::string::npos)
      << error.what();
  EXPECT_EQ(names_in(folder / "step"), before);  // all of it, or it would be half a checkpoint

  fs::remove(folder / "step" / with_torchs_name);
  remove_checkpoint(folder / "step");
  EXPECT_FALSE(fs::exists(folder / "step"));
}

TEST(PendingCheckpoint, LinksIntoTheDirectoryAreASourceThatWouldBeReplaced) {
  const TemporaryDirectory folder;
  write_sharded(folder / "there", {"a"});
  write_file(folder / "there" / "sub/weights", "mine");
  fs::create_directory(folder / "links");
  fs::create_symlink(folder / "there" / "a", folder / "links" / "first");
  fs::create_symlink("first", folder / "links" / "second");  // a link to a link
  fs::create_directory(folder / "deep");
  fs::create_directory_symlink(folder / "there" / "sub", folder / "deep" / "sub");
  write_file(folder / "listed" / hf_index_name, R"({"weight_map": {"w": "sub/weights"}})");
  fs::create_directory(folder / "listed" / "sub");
  fs::create_symlink(folder / "there" / "sub/weights", folder / "listed" / "sub/weights");
  fs::create_directory(folder / "other");
  fs::create_symlink(folder / "therefore", folder / "other" / "dangling");
  write_file(folder / "therefore", "a name that begins alike");
  for (const char* source : {"links", "deep", "listed"}) {
    const Error error =
        error_of([&] { PendingCheckpoint(folder / "there", sharded, std::nullopt, {folder / source}); });
    EXPECT_EQ(error.system_error, EEXIST);
    EXPECT_NE(std::string(error.what()).find("this is what the checkpoint is made from"), std::string::npos);
  }
  PendingCheckpoint(folder / "there", sharded, true, {folder / "links"});
  PendingCheckpoint(folder / "there", sharded, std::nullopt, {folder / "other", folder / "absent"});
}

TEST(PendingCheckpoint, AFolderThatItsSourceListsFilesOfIsASourceThatWouldBeReplaced) {
  const TemporaryDirectory folder;
  write_file(folder / "d" / hf_index_name, R"({"weight_map": {"w": "sub/weights"}})");
  write_sharded(folder / "d/sub", {"weights"});
  write_sharded(folder / "d/other", {"weights"});
  const Error error =
      error_of([&] { PendingCheckpoint(folder / "d/sub", sharded, std::nullopt, {folder / "d"}); });
  EXPECT_NE(std::string(error.what()).find("this is what the checkpoint is made from"), std::string::npos)
      << error.what();
  const Error inside = error_of([&] {
    PendingCheckpoint(folder / "d", CheckpointKind::huggingface, std::nullopt, {folder / "d/sub"});
  });
  EXPECT_NE(std::string(inside.what()).find("this is what the checkpoint is made from"), std::string::npos)
      << inside.what();
  PendingCheckpoint(folder / "d/other", sharded, std::nullopt, {folder / "d"});
  PendingCheckpoint(folder / "new", sharded, std::nullopt, {folder / "d"});
}

TEST(PendingCheckpoint, NothingReplacesTheTrainingThatItIsMadeFromByAnExport) {
  const TemporaryDirectory folder;
  write_sharded(folder / "there", {"a"});
  write_file(folder / "torch" / torch_metadata_name, "not read here");
  for (const char* training : {"there", "torch"}) {
    const Names before = names_in(folder / training);
    const Error error = error_of([&] {
      PendingCheckpoint(folder / training, CheckpointKind::huggingface, true, {folder / training});
    });
    EXPECT_EQ(error.system_error, EEXIST) << training;
    EXPECT_NE(std::string(error.what()).find("the optimizer"), std::string::npos) << error.what();
    EXPECT_EQ(names_in(folder / training), before);
    PendingCheckpoint(folder / training, CheckpointKind::huggingface, true, {folder / "other"});
  }
}

TEST(PendingCheckpoint, AnIndexThatCannotBeReadKeepsNoShards) {
  const TemporaryDirectory folder;
  write_sharded(folder / "step", {"rank-00000-00000-tag.safetensors", "other"});
  write_file(folder / "step" / hf_index_name, "{");
  remove_checkpoint(folder / "step");
  // The index may name this one.
  EXPECT_EQ(names_in(folder / "step"), (Names{hf_index_name, "other"}));
}

TEST(PendingCheckpoint, AnotherKindOfCheckpointNeedsOverwrite) {
  const TemporaryDirectory folder;
  write_index(folder / "hf", {"model-00001-of-00001.safetensors"});
  write_file(folder / "hf/tokenizer.json", "mine");
  write_file(folder / "torch/.metadata", "pickle");
  write_file(folder / "torch/__0_0.distcp", "zip");
  write_file(folder / "torch/__notes.distcp", "mine");
  write_file(folder / "weights/model.safetensors", "old");
  const Names before = names_in(folder.path);
  for (const char* name : {"hf", "torch", "weights"}) {
    const Error error = error_of([&] { PendingCheckpoint(folder / name, sharded); });
    EXPECT_EQ(error.system_error, EEXIST);
    EXPECT_NE(std::string(error.what()).find("overwrite=True"), std::string::npos) << error.what();
  }
  EXPECT_EQ(error_of([&] { PendingCheckpoint(folder / "hf", CheckpointKind::huggingface); }).system_error,
            EEXIST);
  EXPECT_EQ(names_in(folder.path), before);
  for (const char* name : {"hf", "torch", "weights"}) {
    PendingCheckpoint pending(folder / name, sharded, true);
    save(pending, {"x"});
    pending.publish(manifest_name);
  }
  EXPECT_EQ(names_in(folder / "hf"), (Names{manifest_name, "tokenizer.json", "x"}));
  EXPECT_EQ(names_in(folder / "torch"), (Names{"__notes.distcp", manifest_name, "x"}));
  EXPECT_EQ(names_in(folder / "weights"), (Names{manifest_name, "x"}));
}

TEST(PendingCheckpoint, ARefusalNamesAllThatWouldBeReplaced) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"rank-00000"});
  write_file(folder / "model.safetensors", "somebody's");
  for (const CheckpointKind kind : {sharded, CheckpointKind::huggingface}) {
    const std::string what = error_of([&] { PendingCheckpoint(folder.path, kind); }).what();
    for (const char* name : {"\"rank-00000\"", "\"model.safetensors\""})
      EXPECT_NE(what.find(name), std::string::npos) << what;
  }
}

TEST(PendingCheckpoint, OverwriteFalseReplacesNothing) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"old"});
  EXPECT_EQ(error_of([&] { PendingCheckpoint(folder.path, sharded, false); }).system_error, EEXIST);
}

TEST(PendingCheckpoint, WhatItIsMadeFromNeedsOverwrite) {
  const TemporaryDirectory folder;
  fs::create_directory(folder / "template");
  fs::create_directory_symlink("template", folder / "link");
  const auto onto = [&](std::optional<bool> overwrite) {
    PendingCheckpoint(folder / "link", CheckpointKind::huggingface, overwrite, {"/", folder / "template"});
  };
  EXPECT_EQ(error_of([&] { onto(std::nullopt); }).system_error, EEXIST);
  EXPECT_NO_THROW(onto(true));
}

TEST(PendingCheckpoint, AManifestThatCannotBeReadNeedsOverwriteAndItsFilesStay) {
  const TemporaryDirectory folder;
  write_sharded(folder.path, {"old"});
  write_file(folder / manifest_name, "notes");
  const Error error = error_of([&] { PendingCheckpoint(folder.path, sharded); });
  EXPECT_EQ(error.system_error, EEXIST);
  EXPECT_NE(std::string(error.what()).find("cannot be read"), std::string::npos) << error.what();
  PendingCheckpoint pending(folder.path, sharded, true);
  save(pending, {"x"});
  pending.publish(manifest_name);
  EXPECT_EQ(names_in(folder.path), (Names{"old", manifest_name, "x"}));
}

TEST(PendingCheckpoint, AStrangersFileOfANeededNameIsRefusedByName) {
  const TemporaryDirectory folder;
  write_file(folder / "x", "mine");
  PendingCheckpoint pending(folder.path, sharded);
  const Error error = error_of([&] { pending.expect_free({"w", "x"}); });
  EXPECT_EQ(error.system_error, EEXIST);
  EXPECT_NE(std::string(error.what()).find("\"x\""), std::string::npos) << error.what();
  // One that comes in between is not replaced either, and nothing is published.
  write_file(folder / "y", "mine");
  save(pending, {"w", "y"});
  EXPECT_EQ(error_of([&] { pending.publish(manifest_name); }).system_error, EEXIST);
  pending.abandon();
  EXPECT_EQ(names_in(folder.path), (Names{"x", "y"}));
  EXPECT_EQ(read_file(folder / "y"), "mine");
}

TEST(PendingCheckpoint, FilesOfAnExportKeepClearOfThoseThatItReplaces) {
  const TemporaryDirectory folder;
  PendingCheckpoint first(folder.path, CheckpointKind::huggingface);
  EXPECT_EQ(first.free_start_of_names(), "model");
  first.abandon();
  write_index(folder.path, {"model-00001-of-00002.safetensors", "model-3-00001-of-00002.safetensors"});
  PendingCheckpoint second(folder.path, CheckpointKind::huggingface, true);
  EXPECT_EQ(second.free_start_of_names(), "model-2");
}

TEST(PendingCheckpoint, RefusesAFileInPlaceOfADirectory) {
  const TemporaryDirectory folder;
  write_file(folder / "file", "mine");
  EXPECT_EQ(error_of([&] { PendingCheckpoint(folder / "file", sharded); }).system_error, ENOTDIR);
  EXPECT_EQ(error_of([&] { PendingCheckpoint(folder / "file/checkpoint", sharded); }).system_error, ENOTDIR);
  EXPECT_EQ(read_file(folder / "file"), "mine");
}

TEST(PendingCheckpoint, NamesOfAManifestAreNotFollowedOutOfTheDirectory) {
  const TemporaryDirectory folder;
  write_file(folder / "elsewhere/weights", "mine");
  fs::create_directory_symlink(folder / "elsewhere", folder / "checkpoint-link");
  fs::create_directory(folder / "checkpoint");
  fs::create_directory_symlink(folder / "elsewhere", folder / "checkpoint/sub");
  write_file(folder / "checkpoint" / hf_index_name, R"({"weight_map": {"a": "sub/weights"}})");
  PendingCheckpoint pending(folder / "checkpoint", sharded, true);
  save(pending, {"x"});
  pending.publish(manifest_name);
  EXPECT_EQ(read_file(folder / "elsewhere/weights"), "mine");
}

TEST(RemoveCheckpoint, RemovesWhatItsManifestNamesAndTheDirectoryIfNothingIsLeft) {
  const TemporaryDirectory folder;
  write_sharded(folder / "step-1", {"a", "b"});
  write_sharded(folder / "step-2", {"a"});
  write_file(folder / "step-2/trainer.pt", "mine");
  remove_checkpoint(folder / "step-1");
  remove_checkpoint(folder / "step-2");
  EXPECT_FALSE(fs::exists(folder / "step-1"));
  EXPECT_EQ(names_in(folder.path), Names{"step-2/trainer.pt"});
}

TEST(RemoveCheckpoint, OfALinkRemovesTheLink) {
  const TemporaryDirectory folder;
  write_sharded(folder / "kept", {"a"});
  const Names before = names_in(folder.path);
  fs::create_directory_symlink("kept", folder / "step-1");
  remove_checkpoint(folder / "step-1");
  EXPECT_EQ(names_in(folder.path), before);
}

TEST(RemoveCheckpoint, RefusesOneThatIsBeingSavedToOrCannotBeRead) {
  const TemporaryDirectory folder;
  write_sharded(folder / "step-1", {"a"});
  {
    const PendingCheckpoint pending(folder / "step-1", sharded);
    EXPECT_EQ(error_of([&] { remove_checkpoint(folder / "step-1"); }).system_error, EBUSY);
  }
  write_file(folder / "step-1" / manifest_name, "damaged");
  EXPECT_EQ(error_of([&] { remove_checkpoint(folder / "step-1"); }).kind, ErrorKind::malformed);
  EXPECT_EQ(names_in(folder / "step-1"), (Names{"a", manifest_name}));
}

TEST(ReadOrder, IsWhatTheManifestTells) {
  const TemporaryDirectory folder;
  write_file(folder / manifest_name, manifest_naming({"a"}, 0x1122334455667788));
  EXPECT_EQ(read_order(folder.path), 0x1122334455667788);
  EXPECT_EQ(read_manifest(folder.path).order, 0x1122334455667788);
  write_file(folder / manifest_name, manifest_naming({"a"}));
  EXPECT_EQ(read_order(folder.path), 0);
  // The checksum covers it.
  std::string bytes = manifest_naming({"a"}, 7);
  bytes.back() ^= 1;
  EXPECT_EQ(error_of([&] { decode_manifest(bytes, "m"); }).kind, ErrorKind::malformed);
}

}  // namespace
}  // namespace shardwright
