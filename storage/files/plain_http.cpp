#include "storage/files/plain_http.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "storage/files/remote_calls.h"
#include "storage/files/store_speed.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

/// For which a store is left to its library where it has no plain address.
constexpr std::chrono::seconds rest_without_address{60};

/// And where a range did not come: twice as long after each failure in a row.
constexpr std::chrono::seconds first_rest{2};
constexpr std::chrono::seconds longest_rest{600};

/// Addresses that are kept; more than a checkpoint has files.
constexpr std::size_t most_addresses = 100'000;

struct Known {
  HttpAddress address;
  std::chrono::seconds stall{};
  Clock::time_point until;  // it is good so long
};

/// A store is left to its library until then.
struct Rest {
  Clock::time_point until;
  std::chrono::seconds next = first_rest;
};

/// What has been found of stores, and addresses of objects. Never given back: threads may still look when the
/// process ends.
struct Found {
  std::mutex mutex;
  std::map<std::string, Known> objects;  // by address
  std::map<std::string, Rest> rests;     // by store
};

Found& found() {
  static auto* const all = new Found;
  return *all;
}

void leave_to_library(const std::string& address) {
  const std::lock_guard lock(found().mutex);
  Rest& rest = found().rests[store_of(address)];
  rest.until = std::max(rest.until, Clock::now() + rest_without_address);
}

/// After a failure of what was begun then; for good if that will not pass. What was begun before the last
/// rest has met the same failure as that.
void leave_to_library(const std::string& address, bool may_pass, Clock::time_point begin) {
  const std::lock_guard lock(found().mutex);
  Rest& rest = found().rests[store_of(address)];
  if (may_pass && begin < rest.until) return;
  rest.until = may_pass ? Clock::now() + rest.next : Clock::time_point::max();
  rest.next = std::min(2 * rest.next, longest_rest);
}

/// After a success of what was begun then.
void end_rest(const std::string& address, Clock::time_point begin) {
  const std::lock_guard lock(found().mutex);
  const auto rest = found().rests.find(store_of(address));
  if (rest != found().rests.end() && begin >= rest->second.until) found().rests.erase(rest);
}

void forget(const std::string& address) {
  const std::lock_guard lock(found().mutex);
  found().objects.erase(address);
}

std::optional<Known> known_of(const std::string& address) {
  const Clock::time_point now = Clock::now();
  {
    const std::lock_guard lock(found().mutex);
    const auto rest = found().rests.find(store_of(address));
    if (rest != found().rests.end() && now < rest->second.until) return std::nullopt;
    const auto object = found().objects.find(address);
    if (object != found().objects.end() && now < object->second.until) return object->second;
  }
  const RemoteCalls& calls = remote_calls(address);
  const PlainUrl url = calls.plain_url ? calls.plain_url(address) : PlainUrl{};
  Known known{{}, url.stall, now + url.good_for};
  if (!read_http_address(url.url, known.address)) {
    leave_to_library(address);
    return std::nullopt;
  }
  const std::lock_guard lock(found().mutex);
  if (found().objects.size() >= most_addresses) found().objects.clear();
  found().objects[address] = known;
  return known;
}

}  // namespace

bool is_had_by_plain_http(const std::filesystem::path& address) {
  return known_of(address.native()).has_value();
}

void forget_plain_urls() {
  const std::lock_guard lock(found().mutex);
  found().objects.clear();
  found().rests.clear();
}

std::optional<std::size_t> PlainHttp::receive(const InputFile& object, std::uint64_t offset,
                                              std::size_t count, std::byte* to,
                                              const std::atomic<bool>& stopped) {
  if (count == 0 || offset > object.size() || count > object.size() - offset) return std::nullopt;
  const std::string& address = object.path().native();
  const std::optional<Known> known = known_of(address);
  if (!known) return std::nullopt;
  const Clock::time_point begin = Clock::now();
  const HttpRange range{offset, count, object.size(), object.version(), known->stall};
  const HttpReceived received = connection_.receive(known->address, range, to, stopped);
  if (received.bytes == count) {
    const std::chrono::duration<double> taken = Clock::now() - begin;
    note_request(object.path(), count, taken.count());
    end_rest(address, begin);
  } else if (!stopped) {
    if (!received.is_address_good) forget(address);
    leave_to_library(address, received.may_pass, begin);
  }
  return received.bytes;
}

}  // namespace shardwright
