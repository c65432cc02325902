#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shardwright {

/// What the head of an answer by HTTP says of the bytes behind it.
struct HttpHead {
  int status = 0;
  std::optional<std::uint64_t> length;  ///< bytes of the body
  std::uint64_t begin = 0, end = 0;     ///< the range of the object that it is; both 0: none is named
  std::optional<std::uint64_t> total;   ///< bytes of the object
  std::string etag;                     ///< as it came, with its quotes; empty: there is none
  bool is_encoded = false;              ///< in chunks, or compressed: the body is not the object's bytes
  bool keeps_open = false;              ///< the connection can be asked again

  friend bool operator==(const HttpHead&, const HttpHead&) = default;
};

/// A head is no longer; stores' own take a few hundred bytes.
inline constexpr std::size_t most_http_head_bytes = std::size_t{16} << 10;

/// Where the head ends, behind its empty line; npos: it does not yet.
std::size_t end_of_http_head(std::string_view bytes);

/// Reads a head that ends with its empty line. Nothing where it is not as RFC 9112 has it, or says something
/// twice that can be said once.
std::optional<HttpHead> read_http_head(std::string_view head);

}  // namespace shardwright
