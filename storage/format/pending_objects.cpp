#include "storage/format/pending_objects.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/output_file.h"
#include "storage/files/random_number.h"
#include "storage/files/remote_calls.h"
#include "storage/files/secrets.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksum.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/format/save_marker.pb.h"

namespace shardwright {
namespace {

constexpr std::size_t letters_of_tag = 12;

/// How old the marker of another step's save must be before what that has written is taken for a dead one's.
constexpr std::chrono::hours taken_for_dead{24};

std::string new_tag() {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string tag;
  for (std::uint64_t number = random_number(); tag.size() < letters_of_tag; number >>= 4)
    tag += digits[number % digits.size()];
  return tag;
}

/// Whether a marker is of a save whose shards end in its name, and not of an export's.
bool is_tag(const std::string& name) {
  return name.size() == letters_of_tag && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string folder_of_markers(const std::string& address) {
  return folder_address(address) + "/" + unfinished_save_name;
}

std::string version_in(const ShadowFolder& shadow, const std::string& name) {
  const auto found = shadow.objects().find(name);
  return found == shadow.objects().end() ? "" : found->second.version;
}

std::uint64_t checksum_of_text(const std::string& bytes) { return checksum_of(bytes.data(), bytes.size()); }

/// Null for a marker that no save has written, or that is gone or being written anew.
std::unique_ptr<wire::SaveMarker> read_marker(const std::string& address, const RemoteObject& marker) {
  try {
    const std::string bytes = bytes_of_object(folder_of_markers(address) + "/" + marker.name, marker);
    const google::protobuf::LogSilencer silence;
    auto told = std::make_unique<wire::SaveMarker>();
    if (!told->ParseFromString(bytes) || told->commit().empty()) return nullptr;
    return told;
  } catch (const Error& error) {
    if (error.kind != ErrorKind::not_found && error.system_error != ESTALE) throw;
    return nullptr;
  }
}

/// Whether the folder has a file in place of that object, which can have been a save's.
bool is_shown(const ShadowFolder& shadow, const std::string& name) {
  return shadow.objects().contains(name) && entry_at(shadow.path() / name).has_value();
}

/// Whether that save has been published, or a later one.
bool is_published(const ShadowFolder& shadow, const wire::SaveMarker& told) {
  return version_in(shadow, told.commit()) != told.over();
}

/// What a save that died had written before what publishes.
struct Unpublished {
  std::string name;
  std::uint64_t checksum;
  std::optional<std::string> previous;
};

/// Has the folder show what was there before saves that have not been published. The objects stay.
void undo_unpublished(ShadowFolder& shadow) {
  std::vector<Unpublished> unpublished;
  for (const RemoteObject& marker : shadow.saving()) {
    const std::unique_ptr<wire::SaveMarker> told = read_marker(shadow.address(), marker);
    if (told == nullptr || is_published(shadow, *told)) continue;
    for (const auto& [name, size] : told->writes()) {
      // No name of weights, but one that they may not begin with.
      if (is_shown(shadow, name))
        std::filesystem::rename(shadow.path() / name, shadow.path() / (name + ".unpublished"));
    }
    for (const auto& [name, checksum] : told->publishes()) {
      const auto previous = told->previous().find(name);
      const bool replaces = previous != told->previous().end();
      unpublished.push_back({name, checksum, replaces ? std::optional(previous->second) : std::nullopt});
    }
    if (!is_tag(marker.name))
      write_whole_file(shadow.path() / (marker.name + "-0-of-0.unpublished"), "", /*flush=*/false);
  }
  // One that died after another has written over what that had: the later one is undone first.
  const auto is_there = [&](const Unpublished& one) {
    return is_shown(shadow, one.name) && checksum_of_text(shadow.content(one.name)) == one.checksum;
  };
  for (;;) {
    const auto one = std::find_if(unpublished.begin(), unpublished.end(), is_there);
    if (one == unpublished.end()) break;
    if (one->previous) {
      write_whole_file(shadow.path() / one->name, *one->previous, /*flush=*/false);
    } else {
      std::filesystem::remove(shadow.path() / one->name);
    }
    unpublished.erase(one);
  }
  shadow.look_into_what_is_told_of();
  shadow.seen();
}

/// Has the store show what undo_unpublished() has the folder show in place of what dead saves had replaced.
void bring_back_replaced(ShadowFolder& shadow) {
  std::set<std::string> done;
  for (const RemoteObject& marker : shadow.saving()) {
    const std::unique_ptr<wire::SaveMarker> told = read_marker(shadow.address(), marker);
    if (told == nullptr || is_published(shadow, *told)) continue;
    for (const auto& [name, bytes] : told->previous()) {
      const auto object = shadow.objects().find(name);
      const auto wrote = told->publishes().find(name);
      if (object == shadow.objects().end() || wrote == told->publishes().end() || done.contains(name))
        continue;
      const std::string address = shadow.address_of(name);
      // Of several that wrote it, the last finds it as it left it.
      if (checksum_of_text(bytes_of_object(address, object->second)) != wrote->second) continue;
      if (entry_at(shadow.path() / name)) {
        writing_calls(address).put(address, shadow.content(name), /*only_new=*/false, object->second.version);
      } else {
        writing_calls(address).remove(address);
      }
      done.insert(name);
    }
  }
}

/// Whether an object is one that the save of that marker has written, or was to replace and `replaces`.
bool is_of_save(const std::string& address, const RemoteObject& object, const std::string& tag,
                const wire::SaveMarker& told, bool replaces) {
  if (is_tag(tag) && std::string_view(object.name).substr(0, object.name.find('.')).ends_with("-" + tag))
    return true;
  const auto written = told.writes().find(object.name);
  if (written != told.writes().end() && written->second == object.size) return true;
  const auto removed = told.removes().find(object.name);
  if (replaces && removed != told.removes().end() && is_same_version(removed->second, object.version))
    return true;
  const auto published = told.publishes().find(object.name);
  return published != told.publishes().end() && !told.previous().contains(object.name) &&
         checksum_of_text(bytes_of_object(address + "/" + object.name, object)) == published->second;
}

/// Deletes the objects of the save of that marker but those of the names in `kept`, and then the marker.
/// `replaces`: it or a later one has been published, so that what it was to replace goes, too.
void remove_what_a_save_wrote(const std::string& address, const std::string& tag,
                              const std::set<std::string>& kept, bool replaces) {
  const RemoteCalls& calls = writing_calls(address);
  const std::string marker = folder_of_markers(address) + "/" + tag;
  RemoteObject found = calls.head(marker);
  found.name = tag;
  const std::unique_ptr<wire::SaveMarker> told = read_marker(address, found);
  if (told == nullptr) return;
  for (const RemoteObject& one : calls.list(address)) {
    if (!one.is_folder && !kept.contains(one.name) && is_of_save(address, one, tag, *told, replaces))
      calls.remove(address + "/" + one.name);
  }
  calls.remove(marker);
}

/// What the checkpoints of a folder name.
std::set<std::string> names_of_checkpoints(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const CheckpointInPlace& found : checkpoints_in(folder)) {
    for (const auto* some : {&found.files, &found.beside, &found.changed, &found.with_weights})
      names.insert(some->begin(), some->end());
  }
  return names;
}

/// The object if it holds these bytes.
std::optional<RemoteObject> object_holding(const std::string& address, const std::string& bytes) {
  try {
    const RemoteObject found = remote_calls(address).head(address);
    if (found.size == bytes.size() && bytes_of_object(address, found) == bytes) return found;
  } catch (const Error& error) {
    if (error.kind != ErrorKind::not_found) throw;
  }
  return std::nullopt;
}

bool is_condition_not_met(const Error& error) {
  return error.kind == ErrorKind::io && (error.system_error == EEXIST || error.system_error == ESTALE);
}

}  // namespace

PendingObjects::PendingObjects(const std::string& address, const std::string& commit_name)
    : shadow_(address), tag_(new_tag()), told_(std::make_unique<wire::SaveMarker>()) {
  writing_calls(address);
  told_->set_commit(commit_name);
  told_->set_over(version_in(shadow_, commit_name));
  undo_unpublished(shadow_);
}

PendingObjects::~PendingObjects() = default;

std::string PendingObjects::marker() const { return folder_of_markers(shadow_.address()) + "/" + tag_; }

bool PendingObjects::announce() { return announce(tag_, {}); }

bool PendingObjects::announce(const std::string& tag, const SizesOfObjects& writes) {
  tag_ = tag;
  told_->mutable_writes()->clear();
  told_->mutable_writes()->insert(writes.begin(), writes.end());
  const std::string bytes = told_->SerializeAsString();
  try {
    writing_calls(shadow_.address()).put(marker(), bytes, /*only_new=*/true, "");
  } catch (const Error& error) {
    // An answer that was lost looks like a refusal when the same is written again.
    if (!is_condition_not_met(error)) throw;
    if (!object_holding(marker(), bytes)) return false;
  }
  is_marked_ = true;
  return true;
}

void PendingObjects::take(const std::string& name) {
  write_whole_file(shadow_.path() / name, "", /*flush=*/false);
  shadow_.seen();
}

void PendingObjects::expect_uploaded(const SizesOfObjects& uploaded) const {
  SizesOfObjects there;
  for (const RemoteObject& one : remote_calls(shadow_.address()).list(shadow_.address())) {
    if (!one.is_folder) there[one.name] = one.size;
  }
  for (const auto& [name, size] : uploaded) {
    const auto found = there.find(name);
    if (found != there.end() && found->second == size) continue;
    throw Error(ErrorKind::io,
                without_secrets(shadow_.address_of(name)) + ": expected the " + std::to_string(size) +
                    " bytes that a rank has uploaded, found " +
                    (found == there.end() ? "no such object" : std::to_string(found->second) + " bytes") +
                    "; nothing was published. Did another save to the same place run?",
                ESTALE);
  }
}

void PendingObjects::publish() {
  const ShadowFolder::Changes changes = shadow_.changes();
  std::map<std::string, std::string> written;
  for (const std::string& name : changes.written) {
    if (name == told_->commit()) continue;
    std::string bytes = bytes_of_file(shadow_.path() / name);
    const auto found = shadow_.objects().find(name);
    if (found != shadow_.objects().end()) {
      std::string previous = bytes_of_object(shadow_.address_of(name), found->second);
      if (previous == bytes) continue;
      (*told_->mutable_previous())[name] = std::move(previous);
    }
    written.emplace(name, std::move(bytes));
  }
  tell_intent(written, changes.gone);
  write(written);
  is_marked_ = false;
  remove_replaced(changes.gone);
  remove_left_behind();
}

/// For whoever comes after a kill between the first of these writes and the last deletion.
void PendingObjects::tell_intent(const std::map<std::string, std::string>& written,
                                 const std::vector<std::string>& gone) {
  if (written.empty() && gone.empty()) return;
  for (const auto& [name, bytes] : written) (*told_->mutable_publishes())[name] = checksum_of_text(bytes);
  for (const std::string& name : gone) (*told_->mutable_removes())[name] = version_in(shadow_, name);
  writing_calls(shadow_.address()).put(marker(), told_->SerializeAsString(), /*only_new=*/false, "");
}

/// Writes all others, torch's metadata behind those that it names, then what commits. Brings back what was
/// replaced where that fails.
void PendingObjects::write(const std::map<std::string, std::string>& written) {
  std::map<std::string, RemoteObject> done;
  try {
    for (const auto& [name, bytes] : written) {
      if (name != torch_metadata_name) done[name] = put(name, bytes, /*commits=*/false);
    }
    if (const auto torchs = written.find(torch_metadata_name); torchs != written.end())
      done[torchs->first] = put(torchs->first, torchs->second, /*commits=*/false);
    commit();
  } catch (...) {
    if (is_marked_) take_back(done);  // else what it names may have been published
    throw;
  }
}

void PendingObjects::take_back(const std::map<std::string, RemoteObject>& done) noexcept {
  for (const auto& [name, object] : done) {
    try {
      const RemoteCalls& calls = writing_calls(shadow_.address());
      const std::string address = shadow_.address_of(name);
      const auto previous = told_->previous().find(name);
      if (previous != told_->previous().end()) {
        calls.put(address, previous->second, /*only_new=*/false, object.version);
      } else if (is_same_version(calls.head(address).version, object.version)) {
        calls.remove(address);
      }
    } catch (const std::exception&) {  // the error that is on its way says more
    }
  }
}

/// Writes what publishes. From here on nothing is deleted, unless it is known that it has not been written:
/// an interrupt may come when it is there already.
void PendingObjects::commit() {
  is_marked_ = false;
  is_unknown_ = false;
  try {
    put(told_->commit(), bytes_of_file(shadow_.path() / told_->commit()), /*commits=*/true);
  } catch (const Error&) {
    is_marked_ = !is_unknown_;
    throw;
  }
}

/// Writes an object over that which was there in the beginning, and over no other.
RemoteObject PendingObjects::put(const std::string& name, const std::string& bytes, bool commits) {
  const std::string address = shadow_.address_of(name);
  const bool is_new = !shadow_.objects().contains(name);
  try {
    return writing_calls(address).put(address, bytes, is_new, version_in(shadow_, name));
  } catch (const Error& refusal) {
    // An answer that was lost looks like a refusal when the same is written again.
    std::optional<RemoteObject> found;
    try {
      found = object_holding(address, bytes);
    } catch (const Error&) {
      if (!commits) throw refusal;
      is_unknown_ = true;
      throw Error(refusal.kind,
                  std::string(refusal.what()) + "; whether " + without_secrets(address) +
                      " has been written is not known, and what it names stays: save again",
                  refusal.system_error);
    }
    if (found) return *found;
    if (!is_condition_not_met(refusal)) throw;
    throw Error(ErrorKind::io,
                without_secrets(address) +
                    ": another save to this place has written it meanwhile; this one was not published",
                EEXIST);
  }
}

/// The lists first. What cannot be deleted is nobody's, and stays.
void PendingObjects::remove_replaced(std::vector<std::string> gone) const {
  std::stable_partition(gone.begin(), gone.end(), [](const std::string& name) {
    return name == torch_metadata_name || name == manifest_name;
  });
  for (const std::string& name : gone) {
    try {
      writing_calls(shadow_.address()).remove(shadow_.address_of(name));
    } catch (const Error&) {
    }
  }
}

/// The marker of this save, and what saves that died have left: nobody can publish over what is there now.
void PendingObjects::remove_left_behind() const {
  try {
    writing_calls(shadow_.address()).remove(marker());
  } catch (const Error&) {
  }
  const std::set<std::string> kept = names_of_checkpoints(shadow_.path());
  for (const RemoteObject& one : shadow_.saving()) {
    try {
      remove_what_a_save_wrote(shadow_.address(), one.name, kept, /*replaces=*/true);
    } catch (const Error&) {
    }
  }
}

void PendingObjects::abandon() noexcept {
  if (!std::exchange(is_marked_, false)) return;
  try {
    std::set<std::string> kept;
    for (const auto& [name, object] : shadow_.objects()) kept.insert(name);
    remove_what_a_save_wrote(shadow_.address(), tag_, kept, /*replaces=*/false);
  } catch (const std::exception&) {  // whoever saves there next deletes it
  }
}

std::string tag_of_save_under_way(const std::string& address) {
  const RemoteObject* last = nullptr;
  const std::vector<RemoteObject> markers = remote_calls(address).list(folder_of_markers(address));
  for (const RemoteObject& one : markers) {
    if (is_tag(one.name) && (last == nullptr || one.modified > last->modified)) last = &one;
  }
  if (last != nullptr) return last->name;
  throw Error(ErrorKind::not_found, without_secrets(address) + ": no save to this folder is under way");
}

void remove_remote_checkpoint(const std::string& address) {
  const ShadowFolder shadow(address);
  shadow.naming([&] { remove_checkpoint(shadow.path()); });
  std::vector<std::string> gone = shadow.changes().gone;
  std::stable_partition(gone.begin(), gone.end(),
                        [](const std::string& name) { return name == manifest_name; });
  for (const std::string& name : gone) writing_calls(address).remove(shadow.address_of(name));
}

void clean_up_after_dead_remote_saves(const std::string& folder) {
  const std::string address = folder_address(folder);
  const std::vector<RemoteObject> markers = remote_calls(address).list(folder_of_markers(address));
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  const bool are_dead = std::all_of(markers.begin(), markers.end(), [&](const RemoteObject& one) {
    return one.modified > 0 && one.modified < (now - taken_for_dead).count();
  });
  if (markers.empty() || !are_dead) return;
  ShadowFolder shadow(address);
  undo_unpublished(shadow);
  const std::set<std::string> kept = names_of_checkpoints(shadow.path());
  bring_back_replaced(shadow);
  for (const RemoteObject& one : markers) {
    const std::unique_ptr<wire::SaveMarker> told = read_marker(address, one);
    if (told != nullptr) remove_what_a_save_wrote(address, one.name, kept, is_published(shadow, *told));
  }
}

}  // namespace shardwright
