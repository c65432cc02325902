#include "storage/files/http_head.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace shardwright {
namespace {

const std::string good =
    "HTTP/1.1 206 Partial Content\r\nServer: x\r\nContent-Length: 100\r\ncontent-RANGE:  bytes 5-104/200 \r\n"
    "ETag: \"abc\"\r\nX-Empty:\r\n\r\n";

/// The good head with one text in place of another.
std::string with(const std::string& old, const std::string& text) {
  std::string head = good;
  return head.replace(head.find(old), old.size(), text);
}

TEST(http_head, says_what_stands_in_it) {
  const std::optional<HttpHead> head = read_http_head(good);
  ASSERT_TRUE(head);
  EXPECT_EQ(head->status, 206);
  EXPECT_EQ(head->length, 100);
  EXPECT_EQ(head->begin, 5);
  EXPECT_EQ(head->end, 105);
  EXPECT_EQ(head->etag, "\"abc\"");
  EXPECT_FALSE(head->is_encoded);
  EXPECT_TRUE(head->keeps_open);
}

TEST(http_head, knows_who_ends_the_connection_and_what_is_encoded) {
  EXPECT_FALSE(read_http_head(with("HTTP/1.1", "HTTP/1.0"))->keeps_open);
  EXPECT_FALSE(read_http_head(with("Server: x", "Connection: Close"))->keeps_open);
  EXPECT_TRUE(read_http_head(with("Server: x", "connection: Keep-Alive"))->keeps_open);
  EXPECT_TRUE(read_http_head(with("Server: x", "Transfer-Encoding: chunked"))->is_encoded);
  EXPECT_TRUE(read_http_head(with("Server: x", "Content-Encoding: gzip"))->is_encoded);
  EXPECT_FALSE(read_http_head(with("Server: x", "Content-Encoding: identity"))->is_encoded);
}

TEST(http_head, of_an_object_of_unknown_size_has_a_range) {
  EXPECT_EQ(read_http_head(with("/200", "/*"))->end, 105);
  EXPECT_EQ(read_http_head(with("5-104/200", "*/200"))->end, 0);
}

TEST(http_head, is_refused_where_it_is_not_as_the_standard_has_it) {
  const std::vector<std::string> malformed = {
      with("HTTP/1.1", "HTTP/2"),
      with("HTTP/1.1", "HTTP/1.2"),
      with("HTTP/1.1 206", "HTTP/1.1 2060"),
      with("206", "+06"),
      with("206", "099"),
      with("206", "600"),
      with("206", "20"),
      with("Server: x", "Server x"),
      with("Server: x", ": x"),
      with("Server: x", "Ser ver: x"),
      with("Server: x", " folded"),
      with("Server: x", "Server: a\rb"),
      with("Server: x", "Server: a\nb"),
      with("Server: x", std::string("Server: a\0b", 11)),
      with("Server: x", "Content-Length: 100"),
      with("Server: x", "ETag: \"abc\""),
      with("Server: x", "CONTENT-range: bytes 5-104/200"),
      with("Length: 100", "Length: "),
      with("Length: 100", "Length: -1"),
      with("Length: 100", "Length: 1e2"),
      with("Length: 100", "Length: 100, 100"),
      with("Length: 100", "Length: 99999999999999999999"),
      with("bytes 5", "octets 5"),
      with("bytes 5-104/200", "bytes 5-104"),
      with("bytes 5-104/200", "bytes 104-5/200"),
      with("bytes 5-104/200", "bytes 5-200/200"),
      with("bytes 5-104/200", "bytes -104/200"),
      with("bytes 5-104/200", "bytes 5-/200"),
      with("bytes 5-104/200", "bytes 0-18446744073709551615/*"),
      with("\"abc\"", ""),
      good + "x",
      good.substr(2),
      "\r\n\r\n",
      "",
  };
  for (const std::string& head : malformed) EXPECT_FALSE(read_http_head(head)) << head;
}

TEST(http_head, is_not_there_before_its_empty_line) {
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_EQ(end_of_http_head(good.substr(0, size)), std::string::npos);
    EXPECT_FALSE(read_http_head(good.substr(0, size))) << size;
  }
  EXPECT_EQ(end_of_http_head(good + "\r\n\r\nbody"), good.size());
}

}  // namespace
}  // namespace shardwright
