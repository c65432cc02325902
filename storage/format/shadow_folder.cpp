#include "storage/format/shadow_folder.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/output_file.h"
#include "storage/files/remote_calls.h"
#include "storage/files/secrets.h"
#include "storage/format/adapter_config.h"
#include "storage/format/adapter_file.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Requests for small objects that are under way at a time.
constexpr int objects_at_once = 16;

/// Objects that say of others how they were written: the rules look into those.
constexpr std::string_view telling_of_others[]{manifest_name, checksums_name};

/// Objects that the rules look into whatever else is there.
constexpr std::string_view always_looked_into[]{hf_index_name, adapter_config_name, adapter_weights_name};

/// Folders that belong to a checkpoint.
constexpr std::string_view folders_beside[]{"additional_chat_templates"};

/// What is larger and of no known name is nothing that lies beside weights.
constexpr std::uint64_t most_bytes_beside = std::uint64_t{64} << 20;

constexpr std::uint64_t most_bytes_of_header = 100'000'000;

constexpr std::string_view endings_of_weights[]{".safetensors", ".distcp", ".bin", ".pt", ".pth",
                                                ".ckpt",        ".gguf",   ".h5",  ".npz"};

bool is_among(std::string_view name, const auto& names) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_of_weights_by_ending(const std::string& name) {
  return std::any_of(std::begin(endings_of_weights), std::end(endings_of_weights),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

/// Whether this can be a file of a checkpoint; a store has names that a file system has not.
bool can_be_a_file(const std::string& name) {
  if (name.find('\0') != std::string::npos) return false;
  std::size_t begin = 0;
  for (;;) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view part = std::string_view(name).substr(begin, end - begin);
    if (part.empty() || part.size() > 255 || part == "." || part == "..") return false;
    if (end == name.size()) return true;
    begin = end + 1;
  }
}

/// Names of schemes that stand for another.
constexpr std::pair<std::string_view, std::string_view> other_schemes[]{
    {"s3a", "s3"}, {"gcs", "gs"}, {"azure", "az"}, {"abfs", "az"}, {"abfss", "az"}, {"adl", "az"}};

/// To compare with others: the scheme by one name in small letters, and no empty part behind it.
std::string in_one_form(std::string_view address) {
  const std::size_t end = std::min(address.find("://"), address.size());
  std::string form(address.substr(0, end));
  std::transform(form.begin(), form.end(), form.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const auto& [other, scheme] : other_schemes) {
    if (form == other) form = scheme;
  }
  form += ':';
  for (std::size_t at = end; at < address.size();) {
    const std::size_t begin = std::min(address.find_first_not_of(at == end ? ":/" : "/", at), address.size());
    at = std::min(address.find('/', begin), address.size());
    if (begin < at) (form += '/') += address.substr(begin, at - begin);
  }
  return form;
}

void replace_all(std::string& text, const std::string& what, const std::string& by) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
}

}  // namespace

std::string folder_address(std::string address) {
  while (address.ends_with('/')) address.pop_back();
  return address;
}

bool is_same_folder(const std::string& one, const std::string& other) {
  return in_one_form(one) == in_one_form(other);
}

std::string bytes_of_file(const std::filesystem::path& path) {
  const InputFile file(path);
  std::string bytes(file.size(), '\0');
  file.read(0, bytes.data(), bytes.size());
  return bytes;
}

ShadowFolder::ShadowFolder(std::string address) : address_(folder_address(std::move(address))) {
  fill();
  seen();
}

void ShadowFolder::fill() {
  const RemoteCalls& calls = remote_calls(address_);
  for (RemoteObject& one : calls.list(address_of(unfinished_save_name))) {
    if (!one.is_folder) saving_.push_back(std::move(one));
  }
  std::vector<RemoteObject> found = calls.list(address_);
  for (const std::string_view folder : folders_beside) {
    const auto is_it = [&](const RemoteObject& one) { return one.is_folder && one.name == folder; };
    if (std::none_of(found.begin(), found.end(), is_it)) continue;
    for (RemoteObject one : calls.list(address_of(std::string(folder)))) {
      one.name.insert(0, std::string(folder) + "/");
      found.push_back(std::move(one));
    }
  }
  std::sort(found.begin(), found.end(),
            [](const RemoteObject& one, const RemoteObject& other) { return one.name < other.name; });
  for (const RemoteObject& one : found) {
    if (!one.is_folder && can_be_a_file(one.name)) make_file(one);
  }
  for (const auto& [name, object] : objects_) set_time(name);
  fetch_all({std::begin(telling_of_others), std::end(telling_of_others)});
  look_into_what_is_told_of();
}

/// Leaves out an object that no file can stand for, such as one whose name another's goes on from.
void ShadowFolder::make_file(const RemoteObject& object) {
  const std::filesystem::path file = path() / object.name;
  if (file.parent_path() != path() && !is_folder(file.parent_path())) {
    if (entry_at(file.parent_path())) return;
    std::filesystem::create_directory(file.parent_path());
  }
  if (entry_at(file)) return;
  write_whole_file(file, "", /*flush=*/false);
  std::filesystem::resize_file(file, object.size);
  objects_.emplace(object.name, object);
}

void ShadowFolder::look_into_what_is_told_of() {
  std::string told;
  for (const std::string_view name : telling_of_others) {
    if (entry_at(path() / name)) told += bytes_of_file(path() / name) + "\n";
  }
  std::vector<std::string> names;
  for (const auto& [name, object] : objects_) {
    // Names stand in there as they are; one that is found by chance is read for nothing.
    if (is_among(name, always_looked_into) || told.find(name) != std::string::npos) names.push_back(name);
  }
  fetch_all(names);
}

ShadowFolder::Changes ShadowFolder::changes() const {
  Changes changes;
  const std::map<std::string, Look> now = looks();
  for (const auto& [name, look] : now) {
    const auto before = before_.find(name);
    if (before == before_.end() || before->second != look) changes.written.push_back(name);
  }
  for (const auto& [name, look] : before_) {
    if (!now.contains(name)) changes.gone.push_back(name);
  }
  return changes;
}

std::string ShadowFolder::content(const std::string& name) {
  fetch_all({name});
  return bytes_of_file(path() / name);
}

void ShadowFolder::naming(const std::function<void()>& work) const {
  try {
    work();
  } catch (const Error& error) {
    std::string text = error.what();
    replace_all(text, path().native(), without_secrets(address_));
    Error named(error.kind, text, error.system_error);
    named.partly_written = error.partly_written;
    throw named;
  }
}

/// Gives each file what is looked into of its object, the first time.
void ShadowFolder::fetch_all(const std::vector<std::string>& names) {
  std::vector<std::string> wanted;
  for (const std::string& name : names) {
    if (objects_.contains(name) && entry_at(path() / name) && fetched_.insert(name).second)
      wanted.push_back(name);
  }
  for_each_index(wanted.size(), objects_at_once, [&](std::size_t i) { fetch(wanted[i]); });
}

void ShadowFolder::fetch(const std::string& name) const {
  const RemoteObject& object = objects_.at(name);
  const std::string address = address_of(name);
  std::string bytes;
  const bool is_whole =
      is_among(name, telling_of_others) || name == hf_index_name || name == torch_metadata_name;
  if (!is_whole && name.ends_with(".safetensors")) {
    std::uint64_t bytes_of_header = 0;
    if (object.size < sizeof bytes_of_header) return;
    bytes = bytes_of_object(address, object, 0, sizeof bytes_of_header);
    std::memcpy(&bytes_of_header, bytes.data(), sizeof bytes_of_header);
    if (bytes_of_header > object.size - sizeof bytes_of_header) return;
    bytes += bytes_of_object(address, object, sizeof bytes_of_header,
                             std::min(bytes_of_header, most_bytes_of_header));
  } else if (is_whole || (!is_of_weights_by_ending(name) && object.size <= most_bytes_beside)) {
    bytes = bytes_of_object(address, object);
  }
  std::fstream file(path() / name, std::ios::in | std::ios::out | std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw Error(ErrorKind::io, (path() / name).string() + ": cannot write this file", EIO);
  set_time(name);
}

void ShadowFolder::set_time(const std::string& name) const {
  const double modified = objects_.at(name).modified;
  if (modified <= 0) return;
  const double seconds = std::floor(modified);
  timespec time{};
  time.tv_sec = static_cast<time_t>(seconds);
  time.tv_nsec = static_cast<long>((modified - seconds) * 1e9);
  const std::array<timespec, 2> times{time, time};
  ::utimensat(AT_FDCWD, (path() / name).c_str(), times.data(), 0);
}

std::map<std::string, ShadowFolder::Look> ShadowFolder::looks() const {
  std::map<std::string, Look> looks;
  if (!is_folder(path())) return looks;
  const std::string saving = std::string(unfinished_save_name) + "/";
  for (const std::string& name : files_below(path())) {
    if (name.starts_with(saving)) continue;
    if (const std::optional<struct stat> found = entry_at(path() / name))
      looks[name] = {found->st_ino, found->st_size, found->st_mtim.tv_sec, found->st_mtim.tv_nsec};
  }
  return looks;
}

}  // namespace shardwright
