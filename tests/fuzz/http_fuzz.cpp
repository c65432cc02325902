/// libFuzzer target: what servers answer by plain HTTP, and addresses, may be any bytes. The first byte says
/// which of the two.
///
///     shardwright_http_fuzz --seeds=DIR      writes a corpus to begin with
///     shardwright_http_fuzz DIR              runs

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "storage/files/http_head.h"
#include "storage/files/http_range.h"
#include "tests/fuzz/entry.h"
#include "tests/storage/http_heads.h"

namespace shardwright {
namespace {

enum Reader : char { head, address, readers };

void require(bool holds) {
  if (!holds) std::abort();
}

void read(char reader, std::string_view bytes) {
  if (reader == head) {
    const std::optional<HttpHead> found = read_http_head(bytes);
    if (!found) return;
    require(end_of_http_head(bytes) == bytes.size());
    require(is_of_a_range(*found));
    require(read_http_head(text_of(*found)) == found);
    return;
  }
  HttpAddress found;
  if (!read_http_address(bytes, found)) return;
  const std::string again = "http://" + found.authority + found.target;
  require(again == bytes || again == std::string(bytes) + "/");
  require(found.authority.find(found.host) != std::string::npos && !found.host.empty());
  require(again.find_first_of(" \r\n") == std::string::npos);
}

void write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  int number = 0;
  const auto write = [&](Reader reader, std::string_view bytes) {
    std::ofstream(folder / std::to_string(number++), std::ios::binary) << static_cast<char>(reader) << bytes;
  };
  for (const std::string& text : heads_of_servers()) write(head, text);
  for (const char* url : {"http://127.0.0.1:9000/bucket/model.safetensors?X-Amz-Signature=0f", "http://host",
                          "http://[::1]:80/a%20b", "http://user@host/x", "https://host/x"})
    write(address, url);
}

}  // namespace

const FuzzTarget fuzz_target{readers, read, write_seeds};

}  // namespace shardwright
