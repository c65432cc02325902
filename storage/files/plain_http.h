#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "storage/files/http_range.h"
#include "storage/files/input_file.h"

namespace shardwright {

/// Whether the object at this address is to be had by HTTP without TLS, as RemoteCalls::plain_url says, and
/// its store has not shown that it answers otherwise than is understood here.
bool is_had_by_plain_http(const std::filesystem::path& address);

/// Forgets the addresses, and what stores have shown: credentials, an endpoint or a proxy may have changed.
void forget_plain_urls();

/// Receives ranges of objects by plain HTTP, straight to where they belong: no library, no interpreter and no
/// copy stand between. What it does not bring is for RemoteCalls::read, which tries again and names what is
/// wrong. REQUIRES: one thread.
class PlainHttp {
 public:
  /// Fills `to` with the bytes from `offset` on, and returns how many have come, at most `count`; nothing
  /// where the object is not to be had so at all.
  std::optional<std::size_t> receive(const InputFile& object, std::uint64_t offset, std::size_t count,
                                     std::byte* to, const std::atomic<bool>& stopped);

 private:
  HttpConnection connection_;
};

}  // namespace shardwright
