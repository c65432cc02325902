#include "storage/files/store_speed.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

namespace shardwright {
namespace {

/// Requests of fewer bytes tell the latency, those of more the rate.
constexpr std::uint64_t small_request = std::uint64_t{64} << 10;
constexpr std::uint64_t large_request = std::uint64_t{512} << 10;

/// How much the last request counts beside those before it.
constexpr double weight_of_last = 1.0 / 8;

struct Measured {
  StoreSpeed speed;
  bool has_latency = false;
  bool has_rate = false;
};

std::mutex measured_mutex;

/// By scheme and host. Never given back: threads may still note when the process ends.
std::map<std::string, Measured>& measured_stores() {
  static auto* const stores = new std::map<std::string, Measured>;
  return *stores;
}

}  // namespace

std::string store_of(const std::filesystem::path& address) {
  const std::string& text = address.native();
  const std::size_t host = text.find("://");
  return host == std::string::npos ? text : text.substr(0, text.find('/', host + 3));
}

std::uint64_t StoreSpeed::bytes_of_latency() const {
  return static_cast<std::uint64_t>(latency * bytes_per_second);
}

StoreSpeed speed_of_store(const std::filesystem::path& address) {
  const std::lock_guard lock(measured_mutex);
  return measured_stores()[store_of(address)].speed;
}

void note_request(const std::filesystem::path& address, std::uint64_t bytes, double seconds) {
  const std::lock_guard lock(measured_mutex);
  auto& [speed, has_latency, has_rate] = measured_stores()[store_of(address)];
  if (bytes <= small_request) {  // the quickest: others waited for more than the store
    speed.latency = has_latency ? std::min(speed.latency, seconds) : seconds;
    has_latency = true;
  } else if (bytes >= large_request) {
    const double bringing = std::max(seconds - speed.latency, seconds / 2);
    const double rate = static_cast<double>(bytes) / std::max(bringing, 1e-6);
    speed.bytes_per_second =
        has_rate ? speed.bytes_per_second + weight_of_last * (rate - speed.bytes_per_second) : rate;
    has_rate = true;
  }
}

}  // namespace shardwright
