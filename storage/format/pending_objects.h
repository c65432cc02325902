#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "storage/format/shadow_folder.h"

namespace shardwright {

namespace wire {
class SaveMarker;
}

/// Bytes of objects, by their names below an address.
using SizesOfObjects = std::map<std::string, std::uint64_t>;

/// A checkpoint that is being added to a folder of a store, beside whatever else is there.
///
/// The rules are those of folders, which a PendingCheckpoint follows in `folder()`. What differs is how a
/// checkpoint is published. Objects have no names before they are whole, and no locks:
///
/// * Files of weights have names that no other save gives, and are written where they stay. Until the
///   manifest or index names them they belong to nothing.
/// * Before the first of them, .shardwright.saving/<tag> is written, on condition that it is not there, and
///   lists what this save writes, replaces and removes (save_marker.proto). The tag is in all names of
///   shards; that of an export is what they begin with. Who saves there next sees the folder as it was before
///   a save that died, and deletes what that has left.
/// * The manifest or index is written last. It, and what else is replaced, is written on condition that it
///   still is what was there in the beginning, or nothing. Of two saves that run at once one is published,
///   and the other finds that out.
/// * What is replaced is deleted after that.
///
/// REQUIRES: one thread at a time. Functions throw as RemoteCalls does.
class PendingObjects {
 public:
  /// `commit_name`: of the object that publishes.
  PendingObjects(const std::string& address, const std::string& commit_name);
  ~PendingObjects();
  PendingObjects(const PendingObjects&) = delete;
  PendingObjects& operator=(const PendingObjects&) = delete;

  const ShadowFolder& shadow() const { return shadow_; }

  /// What names of shards end in.
  const std::string& tag() const { return tag_; }

  /// Says in the store that this save is under way. False if another save has the tag.
  bool announce();

  /// The same under another tag. `writes`: what it uploads under names that do not end in the tag.
  bool announce(const std::string& tag, const SizesOfObjects& writes);

  /// Has the folder hold a file of this name, which no save may write.
  void take(const std::string& name);

  /// Throws Error(io), ESTALE, for objects that ranks have uploaded and that are not there: another save that
  /// has published meanwhile has deleted what it took for that of a dead one.
  void expect_uploaded(const SizesOfObjects& uploaded) const;

  /// Does to the objects what has been done in the folder. Throws Error(io, EEXIST) where another save has
  /// published meanwhile, or somebody has written one of the names. Nothing has been published after an
  /// error, unless it says that this is not known.
  void publish();

  /// Deletes what this save has written, unless it has been published.
  void abandon() noexcept;

 private:
  std::string marker() const;
  void tell_intent(const std::map<std::string, std::string>& written, const std::vector<std::string>& gone);
  void write(const std::map<std::string, std::string>& written);
  void take_back(const std::map<std::string, RemoteObject>& done) noexcept;
  void commit();
  RemoteObject put(const std::string& name, const std::string& bytes, bool commits);
  void remove_replaced(std::vector<std::string> gone) const;
  void remove_left_behind() const;

  ShadowFolder shadow_;
  std::string tag_;
  std::unique_ptr<wire::SaveMarker> told_;  // what the marker says
  bool is_marked_ = false;                  // and nothing can have been published
  bool is_unknown_ = false;                 // whether something has been
};

/// The tag of the save to this address that was begun last. Throws Error(not_found) where there is none.
std::string tag_of_save_under_way(const std::string& address);

/// Deletes a sharded checkpoint at an address: its manifest first, so that nobody finds half of it, then what
/// that names. Throws as remove_checkpoint().
void remove_remote_checkpoint(const std::string& address);

/// Deletes what saves to this address that died, a day ago or longer, have left.
void clean_up_after_dead_remote_saves(const std::string& address);

}  // namespace shardwright
