#include "storage/files/http_range.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/planner/random_checkpoint.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

/// The object that all ranges are of.
const std::string& content() {
  static const std::string all = [] {
    std::string bytes(300'000, '\0');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 + i / 251);
    return bytes;
  }();
  return all;
}

/// What a server does with a request.
struct Reply {
  enum Then { goes_on, hangs_up, stalls };
  std::string bytes;
  Then then = goes_on;
  std::size_t piece = std::string::npos;  // of so many bytes, a millisecond apart
};

/// Where a request's "Range: bytes=A-B" begins and ends, the last byte left out.
std::pair<std::size_t, std::size_t> range_in(const std::string& request) {
  unsigned long long first = 0, last = 0;
  EXPECT_EQ(std::sscanf(request.c_str() + request.find("\r\nRange: "), "\r\nRange: bytes=%llu-%llu\r\n",
                        &first, &last),
            2)
      << request;
  return {first, last + 1};
}

std::string clean(const std::string& request) {
  const auto [begin, end] = range_in(request);
  return "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes " + std::to_string(begin) + "-" +
         std::to_string(end - 1) + "/" + std::to_string(content().size()) +
         "\r\nETag: \"one\"\r\nContent-Length: " + std::to_string(end - begin) + "\r\n\r\n" +
         content().substr(begin, end - begin);
}

std::string replaced(std::string text, const std::string& old, const std::string& by) {
  const std::size_t at = text.find(old);
  EXPECT_NE(at, std::string::npos) << old;
  return text.replace(at, old.size(), by);
}

/// A server on loopback, each connection in a thread of its own.
class Server {
 public:
  explicit Server(std::function<Reply(const std::string&)> answer) : answer_(std::move(answer)) {
    listening_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(listening_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listening_, 16), 0);
    ::getsockname(listening_, reinterpret_cast<sockaddr*>(&address), &size);
    const std::string port = std::to_string(ntohs(address.sin_port));
    this->address = {"127.0.0.1", port, "127.0.0.1:" + port, "/bucket/name?signed=secret"};
    accepting_ = std::thread([this] { accept(); });
  }

  ~Server() {
    ::shutdown(listening_, SHUT_RDWR);
    accepting_.join();
    for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
    for (std::thread& thread : serving_) thread.join();
    for (const int socket : sockets_) ::close(socket);
    ::close(listening_);
  }

  std::size_t connections() {
    const std::lock_guard lock(mutex_);
    return sockets_.size();
  }

  HttpAddress address;

 private:
  void accept() {
    for (int socket; (socket = ::accept(listening_, nullptr, nullptr)) >= 0;) {
      const std::lock_guard lock(mutex_);
      sockets_.push_back(socket);
      serving_.emplace_back([this, socket] { serve(socket); });
    }
  }

  void serve(int socket) {
    std::string request;
    char piece[4096];
    for (ssize_t got; (got = ::recv(socket, piece, sizeof piece, 0)) > 0;) {
      request.append(piece, static_cast<std::size_t>(got));
      if (!request.ends_with("\r\n\r\n")) continue;
      const Reply reply = answer_(request);
      request.clear();
      for (std::string_view left = reply.bytes; !left.empty();) {
        const ssize_t sent = ::send(socket, left.data(), std::min(left.size(), reply.piece), MSG_NOSIGNAL);
        if (sent <= 0) return;
        left.remove_prefix(static_cast<std::size_t>(sent));
        if (reply.piece < left.size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      if (reply.then == Reply::hangs_up) break;
    }
    ::shutdown(socket, SHUT_RDWR);
  }

  const std::function<Reply(const std::string&)> answer_;
  int listening_ = -1;
  std::thread accepting_;
  std::mutex mutex_;
  std::vector<int> sockets_;
  std::vector<std::thread> serving_;
};

const std::atomic<bool> going_on{false};

/// The bytes that came of a range, and what was told of it.
struct Came {
  std::string bytes;
  HttpReceived told;
};

Came receive(HttpConnection& connection, const HttpAddress& address, const HttpRange& range) {
  std::vector<std::byte> to(range.count + 1, std::byte{0xa5});
  const HttpReceived told = connection.receive(address, range, to.data(), going_on);
  EXPECT_EQ(to.back(), std::byte{0xa5}) << "written behind what was asked for";
  return {std::string(reinterpret_cast<const char*>(to.data()), told.bytes), told};
}

HttpRange range_of(std::size_t begin, std::size_t count) {
  return {begin, count, content().size(), "\"one\"", std::chrono::seconds(20)};
}

TEST(http_range, ranges_come_as_they_are_over_one_connection) {
  Server server([](const std::string& request) { return Reply{clean(request)}; });
  HttpConnection connection;
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const auto begin = static_cast<std::size_t>(random.between(0, 250'000));
    const auto count =
        static_cast<std::size_t>(random.once_in(3) ? random.between(1, 40) : random.between(1, 50'000));
    const Came came = receive(connection, server.address, range_of(begin, count));
    ASSERT_EQ(came.bytes, content().substr(begin, count)) << begin << " " << count;
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST(http_range, a_request_says_what_is_wanted_and_of_which_version) {
  std::string asked;
  Server server([&](const std::string& request) {
    asked = request;
    return Reply{clean(request)};
  });
  HttpConnection connection;
  receive(connection, server.address, {10, 5, content().size(), "\"one\""});
  EXPECT_TRUE(asked.starts_with(
      "GET /bucket/name?signed=secret HTTP/1.1\r\nHost: " + server.address.authority + "\r\n"));
  EXPECT_NE(asked.find("\r\nRange: bytes=10-14\r\n"), std::string::npos);
  EXPECT_NE(asked.find("\r\nIf-Match: \"one\"\r\n"), std::string::npos);
  for (const char* version : {"one", "", "W/\"one\"", "\"o\r\nX: ne\""}) {
    receive(connection, server.address, {10, 5, content().size(), version});
    EXPECT_EQ(asked.find("If-Match"), std::string::npos) << version;
  }
}

TEST(http_range, etags_are_the_same_with_quotes_and_without) {
  Server server([&](const std::string& request) { return Reply{clean(request)}; });
  HttpConnection connection;
  EXPECT_EQ(receive(connection, server.address, {10, 5, content().size(), "one"}).bytes,
            content().substr(10, 5));
  EXPECT_EQ(receive(connection, server.address, {10, 5, content().size(), ""}).bytes,
            content().substr(10, 5));
  EXPECT_EQ(receive(connection, server.address, {10, 5, content().size(), "on"}).bytes, "");
}

struct Unclean {
  const char* what;
  std::function<std::string(const std::string& clean)> answer;
  bool may_pass = false;
  bool is_address_good = true;
};

std::string status_of(const std::string& status) {
  return "HTTP/1.1 " + status + "\r\nContent-Length: 4\r\n\r\nbody";
}

/// What is asked for is [100, 200).
std::vector<Unclean> unclean_answers() {
  const auto put = [](const char* old, std::string by) {
    return [old, by](const std::string& clean) { return replaced(clean, old, by); };
  };
  const auto status = [](const char* text) { return [text](const std::string&) { return status_of(text); }; };
  return {
      {"another range", put("bytes 100-199", "bytes 101-200"), true},
      {"a range that begins before", put("bytes 100-199", "bytes 99-199"), true},
      {"a longer range", put("bytes 100-199", "bytes 100-200"), true},
      {"a shorter range", put("bytes 100-199", "bytes 100-198"), true},
      {"no range", put("Content-Range", "X-Range"), true},
      {"a shorter body", put("Length: 100", "Length: 99"), true},
      {"a longer body", put("Length: 100", "Length: 101"), true},
      {"no length", put("Content-Length", "X-Length"), true},
      {"another etag", put("\"one\"", "\"two\""), true},
      {"a weak etag", put("\"one\"", "W/\"one\""), true},
      {"no etag", put("ETag", "X-ETag")},
      {"the whole object", put("206 Partial Content", "200 OK")},
      {"chunks", put("ETag", "Transfer-Encoding: chunked\r\nETag")},
      {"compressed", put("ETag", "Content-Encoding: gzip\r\nETag")},
      {"another address", put("206 Partial Content", "302 Found\r\nLocation: http://127.0.0.1:1/")},
      {"two lengths", put("ETag", "Content-Length: 100\r\nETag")},
      {"no HTTP", [](const std::string&) { return std::string("220 mail.example.com\r\n\r\n"); }},
      {"a head of a megabyte", put("ETag", "X: " + std::string(1 << 20, 'x') + "\r\nETag")},
      {"403", status("403 Forbidden"), true, false},
      {"404", status("404 Not Found"), true, false},
      {"412", status("412 Precondition Failed"), true, false},
      {"416", status("416 Range Not Satisfiable"), true, false},
      {"429", status("429 Too Many Requests"), true},
      {"503", status("503 Slow Down"), true},
  };
}

TEST(http_range, what_is_no_clean_answer_brings_nothing_and_ends_the_connection) {
  for (const Unclean& unclean : unclean_answers()) {
    SCOPED_TRACE(unclean.what);
    bool is_clean = false;
    Server server([&](const std::string& request) {
      return Reply{is_clean ? clean(request) : unclean.answer(clean(request))};
    });
    HttpConnection connection;
    const Came came = receive(connection, server.address, range_of(100, 100));
    EXPECT_EQ(came.bytes, "");
    EXPECT_EQ(came.told.may_pass, unclean.may_pass);
    EXPECT_EQ(came.told.is_address_good, unclean.is_address_good);
    is_clean = true;
    EXPECT_EQ(receive(connection, server.address, range_of(7, 9)).bytes, content().substr(7, 9));
    EXPECT_EQ(server.connections(), 2);
  }
}

TEST(http_range, what_came_before_an_answer_broke_off_is_told) {
  for (const std::size_t left : {1, 5000, 199'999, 200'000}) {
    Server server([&](const std::string& request) {
      std::string answer = clean(request);
      answer.resize(answer.size() - left);
      return Reply{answer, Reply::hangs_up};
    });
    HttpConnection connection;
    const Came came = receive(connection, server.address, range_of(50, 200'000));
    EXPECT_EQ(came.bytes, content().substr(50, 200'000 - left));
    EXPECT_TRUE(came.told.may_pass);
  }
}

TEST(http_range, a_connection_that_the_server_has_ended_is_opened_again) {
  Server server([&](const std::string& request) { return Reply{clean(request), Reply::hangs_up}; });
  HttpConnection connection;
  for (std::size_t round = 0; round < 20; ++round) {
    // At times its end is here before the next request, at times not.
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(receive(connection, server.address, range_of(round, 100)).bytes, content().substr(round, 100));
  }
  EXPECT_EQ(server.connections(), 20);
}

TEST(http_range, more_than_was_asked_for_is_not_taken_for_the_next_answer) {
  Server server([&](const std::string& request) { return Reply{clean(request) + clean(request)}; });
  HttpConnection connection;
  for (std::size_t begin = 0; begin < 10; ++begin) {
    EXPECT_EQ(receive(connection, server.address, range_of(begin * 1000, 50'000)).bytes,
              content().substr(begin * 1000, 50'000));
  }
}

TEST(http_range, a_server_that_stalls_is_left) {
  for (const std::size_t sent : {std::size_t{0}, std::size_t{20}, std::size_t{5000}}) {
    Server server([&](const std::string& request) { return Reply{clean(request).substr(0, sent)}; });
    HttpConnection connection;
    const Clock::time_point begin = Clock::now();
    HttpRange range = range_of(0, 10'000);
    range.stall = std::chrono::seconds(1);
    const Came came = receive(connection, server.address, range);
    EXPECT_LT(came.bytes.size(), 5000);
    EXPECT_EQ(came.bytes, content().substr(0, came.bytes.size()));
    EXPECT_GE(Clock::now() - begin, std::chrono::milliseconds(900));
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(30));
  }
}

TEST(http_range, what_comes_in_pieces_is_there_with_the_last_of_them) {
  Server server([](const std::string& request) { return Reply{clean(request), Reply::goes_on, 30'000}; });
  HttpConnection connection;
  Clock::duration quickest = std::chrono::seconds(1);
  for (int round = 0; round < 20; ++round) {
    const Clock::time_point begin = Clock::now();
    ASSERT_EQ(receive(connection, server.address, range_of(0, 100'000)).bytes, content().substr(0, 100'000));
    quickest = std::min(quickest, Clock::now() - begin);
  }
  EXPECT_LT(quickest, std::chrono::milliseconds(40));  // a nap is of 50
}

TEST(http_range, what_is_stopped_ends_soon) {
  Server server([&](const std::string& request) { return Reply{clean(request).substr(0, 1000)}; });
  HttpConnection connection;
  std::atomic<bool> stopped{false};
  std::thread stopping([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    stopped = true;
  });
  std::vector<std::byte> to(10'000);
  const Clock::time_point begin = Clock::now();
  EXPECT_LT(connection.receive(server.address, range_of(0, to.size()), to.data(), stopped).bytes, to.size());
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(15));
  stopping.join();
}

TEST(http_range, nothing_comes_from_where_nobody_listens) {
  HttpAddress address;
  {
    const Server server([](const std::string&) { return Reply{}; });
    address = server.address;
  }
  HttpConnection connection;
  EXPECT_EQ(receive(connection, address, range_of(0, 10)).bytes, "");
  EXPECT_EQ(
      receive(connection, {"no-such-host.invalid", "80", "no-such-host.invalid", "/"}, range_of(0, 10)).bytes,
      "");
}

TEST(http_range, addresses_are_taken_apart) {
  HttpAddress address;
  ASSERT_TRUE(read_http_address("http://[::1]:90/a%20b?c=d&e", address));
  EXPECT_EQ(address.host, "::1");
  EXPECT_EQ(address.port, "90");
  EXPECT_EQ(address.authority, "[::1]:90");
  EXPECT_EQ(address.target, "/a%20b?c=d&e");
  ASSERT_TRUE(read_http_address("http://host", address));
  EXPECT_EQ(address.host + " " + address.port + " " + address.authority + " " + address.target,
            "host 80 host /");
  for (const char* url : {"", "https://host/x", "HTTP://host/x", "http:///x", "http://user@host/x",
                          "http://host:/x", "http://host:8a/x", "http://host?x", "http://host/x#y",
                          "http://host/x y", "http://host/\r\nX: y", "http://host/\x7f"}) {
    EXPECT_FALSE(read_http_address(url, address)) << url;
  }
}

}  // namespace
}  // namespace shardwright
