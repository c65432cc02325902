#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "storage/files/own_folder.h"
#include "storage/files/remote_objects.h"

namespace shardwright {

/// A folder of this machine that stands for one of a store, so that what holds for folders holds for objects.
///
/// It has a file for each object below the address: of its size, with the contents of those that the rules of
/// folders look into, and holes in place of the rest. What is done to it is then done to the objects. What
/// lies in the folder of saves under way is left out. REQUIRES: one thread at a time.
class ShadowFolder {
 public:
  /// Throws as RemoteCalls does.
  explicit ShadowFolder(std::string address);

  const std::string& address() const { return address_; }
  std::string address_of(const std::string& name) const { return address_ + "/" + name; }

  const std::filesystem::path& path() const { return own_.path(); }

  /// The objects that were there, by their names below the address.
  const std::map<std::string, RemoteObject>& objects() const { return objects_; }

  /// The objects of saves under way, named by their tags.
  const std::vector<RemoteObject>& saving() const { return saving_; }

  /// What is there now counts as what was there before.
  void seen() { before_ = looks(); }

  /// Fetches what the rules look into: also once more, after what tells of others has changed here.
  void look_into_what_is_told_of();

  struct Changes {
    std::vector<std::string> written;  ///< sorted
    std::vector<std::string> gone;     ///< sorted
  };

  /// Names of the files that were written since, and of those that are gone.
  Changes changes() const;

  /// What the folder has in place of the object of that name: its own bytes, unless they were changed here.
  std::string content(const std::string& name);

  /// Does `work`, whose errors then name the address in place of the folder.
  void naming(const std::function<void()>& work) const;

 private:
  using Look = std::tuple<std::uint64_t, std::int64_t, std::int64_t, std::int64_t>;  // inode, size, time

  void fill();
  void make_file(const RemoteObject& object);
  void fetch_all(const std::vector<std::string>& names);
  void fetch(const std::string& name) const;
  void set_time(const std::string& name) const;
  std::map<std::string, Look> looks() const;

  std::string address_;
  OwnFolder own_;
  std::map<std::string, RemoteObject> objects_;
  std::vector<RemoteObject> saving_;
  std::set<std::string> fetched_;
  std::map<std::string, Look> before_;
};

/// An address of a folder as it is gone on from: no slash at its end.
std::string folder_address(std::string address);

/// Whether two addresses are of one folder: schemes have several names, and stores pass over slashes.
bool is_same_folder(const std::string& one, const std::string& other);

/// All bytes of a file of this machine.
std::string bytes_of_file(const std::filesystem::path& path);

}  // namespace shardwright
