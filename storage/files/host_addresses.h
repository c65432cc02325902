#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

namespace shardwright {

/// Where a connection can be made to.
struct SocketAddress {
  sockaddr_storage bytes{};
  socklen_t size = 0;
  int protocol = 0;
};

/// The addresses of a host and port, in random order, so that those who read at a time do not all turn to the
/// first. The system is asked in a thread of its own, as that may take long and cannot be ended; what it says
/// is kept for a minute, for all threads. Empty where it knows none, has not said so in `longest`, or
/// `stopped` becomes true.
std::vector<SocketAddress> addresses_of_host(const std::string& host, const std::string& port,
                                             const std::atomic<bool>& stopped,
                                             std::chrono::milliseconds longest);

}  // namespace shardwright
