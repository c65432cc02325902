#include "storage/files/host_addresses.h"

#include <netdb.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "storage/files/random_number.h"
#include "storage/nap.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds good_for{60};

struct Lookup {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_done = false;
  Clock::time_point until;
  std::vector<SocketAddress> addresses;
};

/// By host and port. Never given back: threads may still ask when the process ends.
struct Lookups {
  std::mutex mutex;
  std::map<std::pair<std::string, std::string>, std::shared_ptr<Lookup>> of_host;
};

Lookups& lookups() {
  static auto* const all = new Lookups;
  return *all;
}

std::vector<SocketAddress> asked(const std::string& host, const std::string& port) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), port.c_str(), &wanted, &found) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all(found, ::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* one = all.get(); one != nullptr; one = one->ai_next) {
    SocketAddress& address = addresses.emplace_back();
    if (one->ai_addrlen > sizeof address.bytes) {
      addresses.pop_back();
      continue;
    }
    std::memcpy(&address.bytes, one->ai_addr, one->ai_addrlen);
    address.size = one->ai_addrlen;
    address.protocol = one->ai_protocol;
  }
  return addresses;
}

void look_up(const std::shared_ptr<Lookup>& lookup, const std::string& host, const std::string& port) {
  std::vector<SocketAddress> addresses = asked(host, port);
  const std::lock_guard lock(lookup->mutex);
  lookup->until = addresses.empty() ? Clock::now() : Clock::now() + good_for;
  lookup->addresses = std::move(addresses);
  lookup->is_done = true;
  lookup->changed.notify_all();
}

/// One that is under way, or whose answer is still good; else a new one.
std::shared_ptr<Lookup> lookup_of(const std::string& host, const std::string& port) {
  const std::lock_guard lock(lookups().mutex);
  std::shared_ptr<Lookup>& kept = lookups().of_host[{host, port}];
  if (kept != nullptr) {
    const std::lock_guard of_one(kept->mutex);
    if (!kept->is_done || Clock::now() < kept->until) return kept;
  }
  const auto lookup = std::make_shared<Lookup>();
  std::thread(look_up, lookup, host, port).detach();
  return kept = lookup;
}

}  // namespace

std::vector<SocketAddress> addresses_of_host(const std::string& host, const std::string& port,
                                             const std::atomic<bool>& stopped,
                                             std::chrono::milliseconds longest) {
  std::shared_ptr<Lookup> lookup;
  try {
    lookup = lookup_of(host, port);
  } catch (const std::system_error&) {  // the process may have no more threads
    return {};
  }
  const Clock::time_point until = Clock::now() + longest;
  std::unique_lock lock(lookup->mutex);
  while (!lookup->is_done && !stopped && Clock::now() < until) lookup->changed.wait_for(lock, nap);
  std::vector<SocketAddress> addresses = lookup->addresses;
  std::shuffle(addresses.begin(), addresses.end(), std::mt19937_64(random_number()));
  return addresses;
}

}  // namespace shardwright
