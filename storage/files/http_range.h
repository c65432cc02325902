#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace shardwright {

/// Where an object is got by HTTP without TLS.
struct HttpAddress {
  std::string host, port;
  std::string authority;  ///< host and port as the address has them, for the head of a request
  std::string target;     ///< path and query, which may sign it: a secret
};

/// Takes "http://host:port/path?query" apart; false where it is none, or holds a user or what no head may.
bool read_http_address(std::string_view url, HttpAddress& address);

/// A range of an object that is wanted.
struct HttpRange {
  std::uint64_t begin = 0;
  std::size_t count = 0;           ///< bytes, at least 1
  std::uint64_t of_bytes = 0;      ///< that the object has
  std::string version;             ///< its etag, with quotes or without; empty: any
  std::chrono::seconds stall{20};  ///< in which a server must send something
};

/// What came of a range.
struct HttpReceived {
  std::size_t bytes = 0;        ///< from its first on; fewer than wanted: the rest has to be got otherwise
  bool may_pass = true;         ///< of fewer: another request may well be answered as it should be
  bool is_address_good = true;  ///< the server did not refuse the address
};

/// A connection to a server, kept open from one range to the next. Raises no errors: whatever is not a clean
/// answer to what was asked ends the connection, and what has come until then is told. REQUIRES: one thread.
class HttpConnection {
 public:
  HttpConnection() = default;
  ~HttpConnection() { close(); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  /// Receives the range into `to`. Follows no redirects. Returns early once `stopped` is true.
  HttpReceived receive(const HttpAddress& address, const HttpRange& range, std::byte* to,
                       const std::atomic<bool>& stopped);

 private:
  bool open(const HttpAddress& address, const std::atomic<bool>& stopped);
  void close();
  bool is_still_open() const;
  bool send(std::string_view request, const std::atomic<bool>& stopped, std::chrono::seconds stall) const;
  std::size_t some(std::byte* to, std::size_t count, const std::atomic<bool>& stopped,
                   std::chrono::seconds stall) const;
  bool ask(const std::string& request, const HttpRange& range, const std::atomic<bool>& stopped,
           std::string& answer) const;

  int socket_ = -1;
  std::string authority_;  // that it leads to
};

}  // namespace shardwright
