#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// An object at an address, such as s3://bucket/run/model.safetensors, or a folder of such.
struct RemoteObject {
  std::string name;        ///< relative to the folder that was listed
  std::uint64_t size = 0;  ///< bytes
  std::string version;     ///< its etag, or what else changes when it does; empty: the store tells nothing
  bool is_folder = false;
  double modified = 0;  ///< seconds since 1970; 0: the store does not tell
};

/// Bytes that have come, and what keeps them until nobody looks at them any more.
using ArrivedBytes = std::shared_ptr<const std::byte>;

/// Where an object is had by HTTP without TLS. It may be signed, and is then a secret.
struct PlainUrl {
  std::string url;                   ///< "http://…"; empty: nowhere
  std::chrono::seconds good_for{0};  ///< it is asked for anew then
  std::chrono::seconds stall{20};    ///< in which the server must send something
};

/// How objects are reached. The Python package has one by the libraries of the stores; another program gives
/// its own. All are thread-safe, try again what may pass, and throw Error: not_found; io, with EACCES where
/// access is denied, ESTALE where the object is not of the version that was asked for. Messages name the
/// object and hold no secrets.
struct RemoteCalls {
  /// What lies directly below a folder; empty where nothing does.
  std::function<std::vector<RemoteObject>(const std::string& folder)> list;

  /// Throws Error(not_found) where there is no object of that name.
  std::function<RemoteObject(const std::string& address)> head;

  /// Gives the `count` bytes from `offset` on, in memory that this has. With a version: of that version, or
  /// throws. Returns early once `stopped` is true; what it then gives is undefined.
  std::function<ArrivedBytes(const std::string& address, const std::string& version, std::uint64_t offset,
                             std::size_t count, const std::atomic<bool>& stopped)>
      read;

  /// Where the engine may get an object itself: what it gets so is not asked of `read`. May be null. Throws
  /// nothing.
  std::function<PlainUrl(const std::string& address)> plain_url = nullptr;

  /// Writes an object at once, and gives what is there then. `only_new`: throws Error(io, EEXIST) where there
  /// is one. `only_over`, if it is not empty: throws Error(io, ESTALE) where that version is no longer there.
  /// Null: nothing is written to addresses.
  std::function<RemoteObject(const std::string& address, std::string_view bytes, bool only_new,
                             const std::string& only_over)>
      put = nullptr;

  /// Deletes an object. One that is not there is deleted already.
  std::function<void(const std::string& address)> remove = nullptr;
};

/// Sets how this process reaches objects, once, before the first is needed.
void set_remote_calls(RemoteCalls calls);

}  // namespace shardwright
