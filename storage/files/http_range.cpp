#include "storage/files/http_range.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <vector>

#include "storage/files/host_addresses.h"
#include "storage/files/http_head.h"
#include "storage/files/nap.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

/// In which a host must be found, and one of its addresses take a connection.
constexpr std::chrono::milliseconds longest_connecting{5000};

/// For so many bytes of a range a thread is woken, not for each that comes: waking it for the 64 KiB of a
/// packet costs processors, its own and the sender's, a quarter of what copying them does.
constexpr std::size_t worth_waking = std::size_t{512} << 10;

constexpr std::string_view scheme = "http://";

bool is_visible(char c) { return c > ' ' && c < 0x7f; }

std::string_view without_quotes(std::string_view version) {
  const std::size_t begin = version.find_first_not_of('"');
  if (begin == version.npos) return {};
  return version.substr(begin, version.find_last_not_of('"') - begin + 1);
}

/// A strong etag; others are compared with what comes.
bool can_be_asked_for(std::string_view version) {
  return version.size() > 2 && version.front() == '"' && version.back() == '"' &&
         std::all_of(version.begin(), version.end(), is_visible);
}

std::string request_for(const HttpAddress& address, const HttpRange& range) {
  std::string text = "GET " + address.target + " HTTP/1.1\r\nHost: " + address.authority +
                     "\r\nRange: bytes=" + std::to_string(range.begin) + "-" +
                     std::to_string(range.begin + range.count - 1) +
                     "\r\nAccept: */*\r\nAccept-Encoding: identity\r\nUser-Agent: shardwright\r\n";
  if (can_be_asked_for(range.version)) text += "If-Match: " + range.version + "\r\n";
  return text + "\r\n";
}

/// Whether an answer is the range. If not, says in `result` what that means for further ones.
bool is_clean(const std::optional<HttpHead>& head, const HttpRange& range, HttpReceived& result) {
  const bool is_partial = head && head->status == 206;
  const bool is_refusal = head && head->status >= 400;
  if (is_refusal) {
    result.is_address_good = head->status >= 500 || head->status == 429;
    return false;
  }
  const bool tells_version = range.version.empty() || (head && !head->etag.empty());
  result.may_pass = is_partial && !head->is_encoded && tells_version;
  return result.may_pass && head->length == range.count && head->begin == range.begin &&
         head->end == range.begin + range.count && (!head->total || head->total == range.of_bytes) &&
         (range.version.empty() || without_quotes(head->etag) == without_quotes(range.version));
}

/// Waits until the socket can be written to, as it can once it is connected.
bool has_connected(int socket, Clock::time_point until, const std::atomic<bool>& stopped) {
  pollfd waiting{socket, POLLOUT, 0};
  while (!stopped && Clock::now() < until) {
    const int ready = ::poll(&waiting, 1, static_cast<int>(nap.count()));
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    int fault = 0;
    socklen_t size = sizeof fault;
    return ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &fault, &size) == 0 && fault == 0;
  }
  return false;
}

/// Sending then waits no longer than a nap; receiving waits by poll().
bool make_waiting_short(int socket) {
  const int flags = ::fcntl(socket, F_GETFL);
  if (flags < 0 || ::fcntl(socket, F_SETFL, flags & ~O_NONBLOCK) != 0) return false;
  const timeval longest{0, std::chrono::microseconds(nap).count()};
  const int at_once = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
  return ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &longest, sizeof longest) == 0;
}

/// The socket can be read from once so many bytes are there.
void wait_for(std::size_t bytes, int socket) {
  const int least = static_cast<int>(bytes);
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least);
}

}  // namespace

bool read_http_address(std::string_view url, HttpAddress& address) {
  if (!url.starts_with(scheme) || !std::all_of(url.begin(), url.end(), is_visible)) return false;
  url.remove_prefix(scheme.size());
  const std::size_t slash = std::min(url.find('/'), url.size());
  const std::string_view authority = url.substr(0, slash);
  if (authority.find_first_of("@?#") != authority.npos || url.find('#') != url.npos) return false;
  const std::size_t bracket = authority.find(']');  // of an address of IPv6
  const std::size_t colon = authority.find(':', bracket == authority.npos ? 0 : bracket);
  std::string_view host = authority.substr(0, colon);
  const std::string_view port = colon == authority.npos ? "80" : authority.substr(colon + 1);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (host.empty() || port.empty() || port.find_first_not_of("0123456789") != port.npos) return false;
  address = {std::string(host), std::string(port), std::string(authority), std::string(url.substr(slash))};
  if (address.target.empty()) address.target = "/";
  return true;
}

void HttpConnection::close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

bool HttpConnection::open(const HttpAddress& address, const std::atomic<bool>& stopped) {
  close();
  const Clock::time_point until = Clock::now() + longest_connecting;
  for (const SocketAddress& one :
       addresses_of_host(address.host, address.port, stopped, longest_connecting)) {
    socket_ = ::socket(one.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, one.protocol);
    if (socket_ < 0) continue;
    const auto* const bytes = reinterpret_cast<const sockaddr*>(&one.bytes);
    const bool begun = ::connect(socket_, bytes, one.size) == 0 || errno == EINPROGRESS;
    if (begun && has_connected(socket_, until, stopped) && make_waiting_short(socket_)) {
      authority_ = address.authority;
      return true;
    }
    close();
  }
  return false;
}

/// False as well where bytes have come that nobody has asked for.
bool HttpConnection::is_still_open() const {
  char byte = 0;
  return ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

bool HttpConnection::send(std::string_view request, const std::atomic<bool>& stopped,
                          std::chrono::seconds stall) const {
  Clock::time_point last = Clock::now();
  while (!request.empty()) {
    const ssize_t sent = ::send(socket_, request.data(), request.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      request.remove_prefix(static_cast<std::size_t>(sent));
      last = Clock::now();
    } else if ((errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) || stopped ||
               Clock::now() - last >= stall) {
      return false;
    }
  }
  return true;
}

/// Waits for bytes. 0: no more come.
std::size_t HttpConnection::some(std::byte* to, std::size_t count, const std::atomic<bool>& stopped,
                                 std::chrono::seconds stall) const {
  const Clock::time_point begin = Clock::now();
  pollfd waiting{socket_, POLLIN, 0};
  while (!stopped) {
    // Not recv() itself: once it has taken a part, it waits for as many bytes again, which may never come.
    ::poll(&waiting, 1, static_cast<int>(nap.count()));
    const ssize_t got = ::recv(socket_, to, count, MSG_DONTWAIT);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got == 0) return 0;
    if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) return 0;
    if (Clock::now() - begin >= stall) return 0;
  }
  return 0;
}

/// Sends a request and takes what comes until the head of its answer is there, with what has come behind it.
/// False where it does not come.
bool HttpConnection::ask(const std::string& request, const HttpRange& range, const std::atomic<bool>& stopped,
                         std::string& answer) const {
  answer.clear();
  if (!send(request, stopped, range.stall)) return false;
  std::byte piece[2048];
  while (end_of_http_head(answer) == std::string::npos) {
    if (answer.size() >= most_http_head_bytes) return false;
    const std::size_t got = some(piece, sizeof piece, stopped, range.stall);
    if (got == 0) return false;
    answer.append(reinterpret_cast<const char*>(piece), got);
  }
  return true;
}

HttpReceived HttpConnection::receive(const HttpAddress& address, const HttpRange& range, std::byte* to,
                                     const std::atomic<bool>& stopped) {
  HttpReceived result;
  const bool was_open = socket_ >= 0 && authority_ == address.authority && is_still_open();
  if (!was_open && !open(address, stopped)) return result;
  const std::string request = request_for(address, range);
  std::string answer;
  bool is_answered = ask(request, range, stopped, answer);
  if (!is_answered && was_open && answer.empty() && !is_still_open()) {  // the server had ended it just then
    is_answered = open(address, stopped) && ask(request, range, stopped, answer);
  }
  const std::size_t body = end_of_http_head(answer);
  if (!is_answered) {
    result.may_pass = answer.size() < most_http_head_bytes;
    close();
    return result;
  }
  const std::optional<HttpHead> head = read_http_head(std::string_view(answer).substr(0, body));
  if (!is_clean(head, range, result)) {
    close();
    return result;
  }
  const std::size_t there = answer.size() - body;
  result.bytes = std::min(there, range.count);
  std::memcpy(to, answer.data() + body, result.bytes);
  std::size_t waits_for = 1;
  while (result.bytes < range.count) {
    const std::size_t rest = range.count - result.bytes;
    if (waits_for != std::min(worth_waking, rest)) {
      waits_for = std::min(worth_waking, rest);
      wait_for(waits_for, socket_);
    }
    const std::size_t got = some(to + result.bytes, rest, stopped, range.stall);
    if (got == 0) break;
    result.bytes += got;
  }
  wait_for(1, socket_);
  if (result.bytes < range.count || there > range.count || !head->keeps_open) close();
  return result;
}

}  // namespace shardwright
