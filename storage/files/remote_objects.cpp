#include <algorithm>
#include <cctype>
#include <forward_list>
#include <mutex>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"

namespace shardwright {
namespace {

std::mutex calls_mutex;

/// All that have been set, the last first. Never given back: threads may still ask when the process ends.
std::forward_list<RemoteCalls>& calls_of_process() {
  static auto& calls = *new std::forward_list<RemoteCalls>;
  return calls;
}

}  // namespace

void set_remote_calls(RemoteCalls calls) {
  const std::lock_guard lock(calls_mutex);
  calls_of_process().push_front(std::move(calls));
}

const RemoteCalls& remote_calls(const std::filesystem::path& address) {
  const std::lock_guard lock(calls_mutex);
  const auto& calls = calls_of_process();
  if (!calls.empty()) return calls.front();
  throw Error(
      ErrorKind::argument,
      printable(address.native()) +
          ": expected a path on this machine, found an address; this program has not said how objects "
          "are reached: set_remote_calls()");
}

const RemoteCalls& writing_calls(const std::filesystem::path& address) {
  const RemoteCalls& calls = remote_calls(address);
  if (calls.put && calls.remove) return calls;
  throw Error(ErrorKind::argument,
              printable(address.native()) +
                  ": expected a path on this machine, found an address; this program has not said how "
                  "objects are written: RemoteCalls::put and remove");
}

std::string bytes_of_object(const std::string& address, const RemoteObject& found, std::uint64_t begin,
                            std::uint64_t count) {
  if (count == 0) return {};
  const std::atomic<bool> stopped = false;
  const ArrivedBytes bytes = remote_calls(address).read(address, found.version, begin, count, stopped);
  return {reinterpret_cast<const char*>(bytes.get()), count};
}

std::string bytes_of_object(const std::string& address, const RemoteObject& found) {
  return bytes_of_object(address, found, 0, found.size);
}

bool is_same_version(std::string_view version, std::string_view other) {
  const auto unquoted = [](std::string_view text) {
    while (text.starts_with('"')) text.remove_prefix(1);
    while (text.ends_with('"')) text.remove_suffix(1);
    return text;
  };
  return unquoted(version) == unquoted(other);
}

bool is_remote(const std::filesystem::path& path) {
  const std::string_view text = path.native();
  const std::size_t end = text.find("://");
  if (end == std::string_view::npos || end < 2) return false;
  const std::string_view scheme = text.substr(0, end);
  const auto is_of_scheme = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '+' || c == '-' || c == '.';
  };
  return std::isalpha(static_cast<unsigned char>(scheme.front())) != 0 &&
         std::all_of(scheme.begin(), scheme.end(), is_of_scheme) && scheme != "file";
}

int threads_for(const std::filesystem::path& path, int threads) {
  return is_remote(path) ? std::max(threads, small_requests_at_once) : threads;
}

}  // namespace shardwright
