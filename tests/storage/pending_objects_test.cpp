#include "storage/format/pending_objects.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "storage/files/remote_objects.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksum.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/format/shadow_folder.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Objects = std::map<std::string, std::string>;

constexpr char address[] = "store://bucket/run";

/// What ends a process: no error of the library.
struct Killed {};

/// A store in memory, whose versions are numbers.
class Store {
 public:
  Store() {
    RemoteCalls calls;
    calls.list = [this](const std::string& folder) { return list(folder); };
    calls.head = [this](const std::string& name) { return head(name); };
    calls.read = [this](const std::string& name, const std::string& version, std::uint64_t offset,
                        std::size_t count, const std::atomic<bool>&) {
      const std::lock_guard lock(mutex_);
      expect_version(name, version);
      const auto bytes = std::make_shared<std::byte[]>(count);
      objects_.at(name).copy(reinterpret_cast<char*>(bytes.get()), count, offset);
      return ArrivedBytes(bytes, bytes.get());
    };
    calls.put = [this](const std::string& name, std::string_view bytes, bool only_new,
                       const std::string& only_over) {
      if (const auto call = before_put) call(name);  // which may set another
      {
        const std::lock_guard lock(mutex_);
        if (only_new && objects_.contains(name)) throw Error(ErrorKind::io, name + ": is there", EEXIST);
        expect_version(name, only_over);
        set(name, std::string(bytes));
      }
      if (after_put) after_put(name);
      return head(name);
    };
    calls.remove = [this](const std::string& name) {
      const std::lock_guard lock(mutex_);
      objects_.erase(name);
    };
    set_remote_calls(std::move(calls));
  }

  std::function<void(const std::string& name)> before_put;
  std::function<void(const std::string& name)> after_put;
  std::function<void(const std::string& name)> before_head;

  void upload(const std::string& name, const std::string& bytes) {
    set(std::string(address) + "/" + name, bytes);
  }

  /// What lies below the address.
  Objects objects() const {
    Objects below;
    for (const auto& [name, bytes] : objects_) below[name.substr(sizeof address)] = bytes;
    return below;
  }

 private:
  void set(const std::string& name, const std::string& bytes) {
    objects_[name] = bytes;
    versions_[name] = '"' + std::to_string(++last_version_) + '"';
  }

  void expect_version(const std::string& name, const std::string& version) {
    if (version.empty()) return;
    if (!objects_.contains(name) || versions_[name] != version)
      throw Error(ErrorKind::io, name + ": is of another version", ESTALE);
  }

  RemoteObject object_of(const std::string& name, const std::string& relative) {
    return {relative, objects_.at(name).size(), versions_[name], false, static_cast<double>(last_version_)};
  }

  RemoteObject head(const std::string& name) {
    if (before_head) before_head(name);
    const std::lock_guard lock(mutex_);
    if (!objects_.contains(name)) throw Error(ErrorKind::not_found, name + ": is not there", ENOENT);
    return object_of(name, name);
  }

  std::vector<RemoteObject> list(const std::string& folder) {
    const std::lock_guard lock(mutex_);
    std::vector<RemoteObject> found;
    std::set<std::string> folders;
    for (const auto& [name, bytes] : objects_) {
      if (!name.starts_with(folder + "/")) continue;
      const std::string relative = name.substr(folder.size() + 1);
      const std::size_t slash = relative.find('/');
      if (slash == std::string::npos) {
        found.push_back(object_of(name, relative));
      } else if (folders.insert(relative.substr(0, slash)).second) {
        found.push_back({relative.substr(0, slash), 0, "", true, 0});
      }
    }
    return found;
  }

  std::mutex mutex_;
  Objects objects_;
  std::map<std::string, std::string> versions_;
  int last_version_ = 0;
};

std::string manifest_of_save(const std::string& shard, const std::string& torchs) {
  Manifest manifest;
  manifest.files = {
      {torch_metadata_name, torchs.size(), torchs.size(), checksum_of(torchs.data(), torchs.size())},
      {shard, 3, 0, 0}};
  return encode_manifest(manifest);
}

/// Begins a save, uploads its shard and writes what is published of it.
std::unique_ptr<PendingCheckpoint> written(Store& store, const std::string& torchs,
                                           std::optional<bool> overwrite = std::nullopt) {
  auto pending = std::make_unique<PendingCheckpoint>(address, CheckpointKind::sharded, overwrite);
  pending->expect_free({manifest_name, torch_metadata_name});
  pending->announce();
  const std::string shard = "rank-00000-" + pending->tag() + ".bin";
  store.upload(shard, "new");
  write_file(pending->path() / manifest_name, manifest_of_save(shard, torchs));
  write_file(pending->path() / torch_metadata_name, torchs);
  return pending;
}

/// Saves, and returns what the store then has.
Objects saved(Store& store, const std::string& torchs) {
  const auto pending = written(store, torchs);
  pending->publish(manifest_name);
  const std::string shard = "rank-00000-" + pending->tag() + ".bin";
  return {{shard, "new"}, {manifest_name, manifest_of_save(shard, torchs)}, {torch_metadata_name, torchs}};
}

TEST(PendingObjects, AnAddressIsTheSameWithSlashesThatStoresPassOver) {
  Store store;
  const std::string slash = std::string(address) + "/";
  const Objects before = saved(store, "torch's");
  for (const auto& [to, from] : {std::pair<std::string, std::string>{slash, address},
                                 {address, slash},
                                 {address, "Store://bucket//run"},
                                 {address, "store:///bucket/run"}}) {
    const Error error =
        error_of([&] { PendingCheckpoint(to, CheckpointKind::sharded, std::nullopt, {from}); });
    EXPECT_EQ(error.system_error, EEXIST) << to << ": " << error.what();
  }
  EXPECT_EQ(store.objects(), before);
  remove_checkpoint(slash);
  EXPECT_EQ(store.objects(), Objects());
}

TEST(PendingObjects, FoldersAreTheSameUnderEachNameOfTheirStore) {
  for (const char* other : {"s3a://b/x/t", "S3://b//x/t/", "s3://b/x/t//"})
    EXPECT_TRUE(is_same_folder("s3://b/x/t", other)) << other;
  EXPECT_TRUE(is_same_folder("gcs://b/x", "gs://b/x"));
  EXPECT_TRUE(is_same_folder("abfss://b/x", "azure://b/x"));
  EXPECT_TRUE(is_same_folder("memory:///b/x", "memory://b/x"));
  for (const char* other : {"gs://b/x/t", "s3://b/x", "s3://b/x/T", "s3://b/xt", "s3://bx/t"})
    EXPECT_FALSE(is_same_folder("s3://b/x/t", other)) << other;
}

bool is_manifest(const std::string& name) { return name.ends_with(manifest_name); }

TEST(PendingObjects, ASaveIsThereWhenItsManifestIsAndLeavesThoseOfOthers) {
  Store store;
  store.upload("notes.txt", "somebody's");
  store.upload("logs/a.txt", "somebody's");
  saved(store, "first");
  Objects seen;
  store.before_put = [&](const std::string& name) {
    if (is_manifest(name)) seen = store.objects();
  };
  Objects expected = saved(store, "second");
  EXPECT_EQ(seen.at(torch_metadata_name), "second") << "torch's metadata comes before the manifest";
  expected.insert({{"notes.txt", "somebody's"}, {"logs/a.txt", "somebody's"}});
  EXPECT_EQ(store.objects(), expected);
}

TEST(PendingObjects, WhatASaveThatDiedHasLeftIsUndoneByTheNext) {
  Store store;
  const Objects before = saved(store, "first");
  for (const std::string torchs : {"second", "third"}) {
    const auto pending = written(store, torchs);
    store.before_put = [](const std::string& name) {
      if (is_manifest(name)) throw Killed();
    };
    EXPECT_THROW(pending->publish(manifest_name), Killed);
    store.before_put = nullptr;
  }
  EXPECT_EQ(store.objects().at(torch_metadata_name), "third");
  EXPECT_EQ(store.objects().at(manifest_name), before.at(manifest_name));
  EXPECT_EQ(store.objects(), [&] {
    Objects all = before;
    all.merge(store.objects());
    all[torch_metadata_name] = "third";
    return all;
  }()) << "what was there before is there";
  const Objects after = saved(store, "fourth");
  EXPECT_EQ(store.objects(), after);
}

TEST(PendingObjects, WhatADeadSaveHasLeftGoesAndAllThatWasThereIsAsItWas) {
  const Objects released{{hf_index_name, R"({"weight_map": {"w": "model-00001-of-00001.safetensors"}})"},
                         {"model-00001-of-00001.safetensors", "weights"},
                         {"config.json", "{}"},
                         {"hf_quant_config.json", "{}"},
                         {"notes.txt", "somebody's"}};
  for (const std::string was_there : {"nothing", "a save", "a release"}) {
    Store store;
    if (was_there == "a save") saved(store, "first");
    if (was_there == "a release") {
      for (const auto& [name, bytes] : released) store.upload(name, bytes);
    }
    const Objects before = store.objects();
    for (const std::string torchs : {"second", "third"}) {
      const auto pending = written(store, torchs, true);
      store.before_put = [](const std::string& name) {
        if (is_manifest(name)) throw Killed();
      };
      EXPECT_THROW(pending->publish(manifest_name), Killed);
      store.before_put = nullptr;
    }
    EXPECT_EQ(store.objects().at(torch_metadata_name), "third");
    clean_up_after_dead_save(address);
    EXPECT_EQ(store.objects(), before) << was_there;
  }
}

TEST(PendingObjects, ASaveThatIsGivenUpLeavesNothing) {
  Store store;
  const Objects before = saved(store, "first");
  written(store, "second")->abandon();
  EXPECT_EQ(store.objects(), before);
  store.before_put = [](const std::string& name) {
    if (is_manifest(name)) throw Error(ErrorKind::io, name + ": access was denied", EACCES);
  };
  const Error error = error_of([&] { saved(store, "second"); });
  EXPECT_EQ(error.system_error, EACCES);
  EXPECT_EQ(store.objects(), before);
}

TEST(PendingObjects, OfTwoSavesAtOnceTheFirstToPublishSucceeds) {
  Store store;
  saved(store, "first");
  const auto late = written(store, "late");
  const Objects expected = saved(store, "second");
  const Error error = error_of([&] { late->publish(manifest_name); });
  EXPECT_NE(std::string(error.what()).find("Did another save to the same place run?"), std::string::npos)
      << error.what();
  EXPECT_EQ(store.objects(), expected);

  Objects other;
  store.before_put = [&](const std::string& name) {
    if (!is_manifest(name)) return;
    store.before_put = nullptr;
    other = saved(store, "meanwhile");
  };
  const Error at_the_end = error_of([&] { saved(store, "late"); });
  EXPECT_EQ(at_the_end.system_error, EEXIST);
  EXPECT_NE(std::string(at_the_end.what()).find("another save to this place"), std::string::npos)
      << at_the_end.what();
  EXPECT_EQ(store.objects(), other);
}

TEST(PendingObjects, AnAnswerThatIsLostIsNoFailureAndOneThatCannotBeKnownIsSaid) {
  Store store;
  saved(store, "first");
  store.after_put = [&](const std::string& name) {
    if (is_manifest(name)) throw Error(ErrorKind::io, name + ": no answer", EIO);
  };
  const Objects expected = saved(store, "second");
  EXPECT_EQ(store.objects(), expected);

  const auto pending = written(store, "third");
  store.before_head = [](const std::string& name) {
    if (is_manifest(name)) throw Error(ErrorKind::io, name + ": no answer", EIO);
  };
  const Error error = error_of([&] { pending->publish(manifest_name); });
  store.before_head = nullptr;
  EXPECT_NE(std::string(error.what()).find("is not known, and what it names stays"), std::string::npos)
      << error.what();
  pending->abandon();
  const std::string shard = "rank-00000-" + pending->tag() + ".bin";
  EXPECT_EQ(store.objects().at(manifest_name), manifest_of_save(shard, "third"));
  EXPECT_EQ(store.objects().at(shard), "new");
}

TEST(PendingObjects, WhatRanksHaveNotUploadedIsNotPublished) {
  Store store;
  const Objects before = saved(store, "first");
  {
    const auto pending = written(store, "second");
    store.upload("rank-00000-" + pending->tag() + ".bin", "longer");
    const Error error = error_of([&] { pending->publish(manifest_name); });
    EXPECT_NE(std::string(error.what()).find("expected the 3 bytes that a rank has uploaded, found 6 bytes"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(store.objects(), before);
}

TEST(PendingObjects, ACheckpointIsRemovedAndItsNeighboursStay) {
  Store store;
  saved(store, "first");
  store.upload("notes.txt", "somebody's");
  remove_checkpoint(address);
  EXPECT_EQ(store.objects(), (Objects{{"notes.txt", "somebody's"}}));
}

TEST(PendingObjects, ErrorsNameTheAddressAndNoFolderOfThisMachine) {
  Store store;
  store.upload(manifest_name, "no manifest");
  const Error error =
      error_of([] { PendingCheckpoint("store://user:word@bucket/run", CheckpointKind::sharded); });
  EXPECT_EQ(std::string(error.what()), "no error") << "nothing is there";
  const Error refused = error_of([] { PendingCheckpoint(address, CheckpointKind::sharded); });
  EXPECT_TRUE(std::string(refused.what()).starts_with("store://bucket/run: holds a sharded checkpoint"))
      << refused.what();
  EXPECT_EQ(std::string(refused.what()).find("shardwright-"), std::string::npos) << refused.what();
}

}  // namespace
}  // namespace shardwright
