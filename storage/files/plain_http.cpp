#include "storage/files/plain_http.h"

#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "storage/files/remote_objects.h"
#include "storage/files/store_speed.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

/// For which a store is left to its library where it has no plain address, and where a range did not come.
constexpr std::chrono::seconds rest_without_address{60};
constexpr std::chrono::seconds rest_after_failure{2};

/// Addresses that are kept; more than a checkpoint has files.
constexpr std::size_t most_addresses = 100'000;

struct Known {
  HttpAddress address;
  std::chrono::seconds stall{};
  Clock::time_point until;  // it is good so long
};

/// What has been found of stores, and addresses of objects. Never given back: threads may still look when the
/// process ends.
struct Found {
  std::mutex mutex;
  std::map<std::string, Known> objects;             // by address
  std::map<std::string, Clock::time_point> rested;  // by store: it is left to its library until then
};

Found& found() {
  static auto* const all = new Found;
  return *all;
}

void leave_to_library(const std::string& address, Clock::time_point until) {
  const std::lock_guard lock(found().mutex);
  found().rested[store_of(address)] = until;
}

void forget(const std::string& address) {
  const std::lock_guard lock(found().mutex);
  found().objects.erase(address);
}

std::optional<Known> known_of(const std::string& address) {
  const Clock::time_point now = Clock::now();
  {
    const std::lock_guard lock(found().mutex);
    const auto rested = found().rested.find(store_of(address));
    if (rested != found().rested.end() && now < rested->second) return std::nullopt;
    const auto object = found().objects.find(address);
    if (object != found().objects.end() && now < object->second.until) return object->second;
  }
  const RemoteCalls& calls = remote_calls(address);
  const PlainUrl url = calls.plain_url ? calls.plain_url(address) : PlainUrl{};
  Known known{{}, url.stall, now + url.good_for};
  if (!read_http_address(url.url, known.address)) {
    leave_to_library(address, now + rest_without_address);
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

std::size_t PlainHttp::receive(const InputFile& object, std::uint64_t offset, std::size_t count,
                               std::byte* to, const std::atomic<bool>& stopped) {
  if (count == 0 || offset > object.size() || count > object.size() - offset) return 0;
  const std::string& address = object.path().native();
  const std::optional<Known> known = known_of(address);
  if (!known) return 0;
  const Clock::time_point begin = Clock::now();
  const HttpReceived received =
      connection_.receive(known->address, {offset, count, object.version(), known->stall}, to, stopped);
  if (received.bytes == count) {
    const std::chrono::duration<double> taken = Clock::now() - begin;
    note_request(object.path(), count, taken.count());
  } else if (!stopped) {
    if (!received.is_address_good) forget(address);
    leave_to_library(address,
                     received.may_pass ? Clock::now() + rest_after_failure : Clock::time_point::max());
  }
  return received.bytes;
}

}  // namespace shardwright
