#pragma once

// Heads of answers by HTTP, for tests.

#include <string>
#include <vector>

#include "storage/files/http_head.h"

namespace shardwright {

/// As servers of several kinds write them.
inline std::vector<std::string> heads_of_servers() {
  return {
      "HTTP/1.1 206 Partial Content\r\nServer: x\r\nContent-Length: 100\r\nContent-Range: bytes 5-104/200\r\n"
      "ETag: \"0123456789abcdef\"\r\nAccept-Ranges: bytes\r\nLast-Modified: Mon, 30 Nov 2026 19:00:00 GMT\r\n"
      "Connection: keep-alive\r\nX-Empty:\r\n\r\n",
      "HTTP/1.1 206 PARTIAL CONTENT\r\ncontent-type: binary/octet-stream\r\ncontent-length: 8\r\n"
      "content-range: bytes 0-7/*\r\netag: W/\"a-2\"\r\nconnection: close\r\n\r\n",
      "HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
      "HTTP/1.1 416 \r\nContent-Range: bytes */200\r\nContent-Length: 0\r\n\r\n",
      "HTTP/1.1 503\r\nRetry-After:\t1 \r\n\r\n",
  };
}

/// A head that says the same.
inline std::string text_of(const HttpHead& head) {
  std::string text = "HTTP/1.1 " + std::to_string(head.status) + " Reason\r\n";
  if (head.length) text += "Content-Length: " + std::to_string(*head.length) + "\r\n";
  if (head.end > 0) {
    text += "Content-Range: bytes " + std::to_string(head.begin) + "-" + std::to_string(head.end - 1) + "/" +
            (head.total ? std::to_string(*head.total) : "*") + "\r\n";
  }
  if (!head.etag.empty()) text += "ETag: " + head.etag + "\r\n";
  if (head.is_encoded) text += "Transfer-Encoding: chunked\r\n";
  if (!head.keeps_open) text += "Connection: close\r\n";
  return text + "\r\n";
}

/// What holds of all that is read: a status, and a range within the object or none.
inline bool is_of_a_range(const HttpHead& head) {
  const bool has_none = head.begin == 0 && head.end == 0;
  return head.status >= 100 && head.status <= 599 && (has_none || head.begin < head.end) &&
         (!head.total || head.end <= *head.total);
}

}  // namespace shardwright
