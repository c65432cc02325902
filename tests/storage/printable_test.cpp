#include "storage/files/printable.h"

#include <gtest/gtest.h>

#include <vector>

namespace shardwright {
namespace {

TEST(printable, utf8_stays_and_all_else_is_escaped) {
  EXPECT_EQ(printable("layer \xC3\xBC \xE6\xBC\xA2 \xF0\x9F\x98\x80"),
            "layer \xC3\xBC \xE6\xBC\xA2 \xF0\x9F\x98\x80");
  EXPECT_EQ(printable(std::string_view("a\0\n\x7F", 4)), "a\\x00\\x0a\\x7f");
  EXPECT_EQ(printable("\xFF\xC3"), "\\xff\\xc3");
  EXPECT_EQ(printable("\xC0\x80"), "\\xc0\\x80") << "overlong";
  EXPECT_EQ(printable("\xED\xA0\x80"), "\\xed\\xa0\\x80") << "surrogate";
  EXPECT_EQ(printable("\xF4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "above U+10FFFF";
}

TEST(printable, long_text_is_cut_and_its_length_told) {
  EXPECT_EQ(printable(std::string(1000, 'x'), 5), "xxxxx... (1000 bytes)");
}

TEST(printable, addresses_are_shown_without_what_may_be_secret) {
  EXPECT_EQ(printable("sftp://user:p@ss@host/x"), "sftp://***@host/x");
  EXPECT_EQ(printable("http://token@host/x?key=1"), "http://***@host/x?***");
  EXPECT_EQ(printable("\"https://u:p@h/x?y\" and s3://b/z?w"), "\"https://***@h/x?***\" and s3://b/z?***");
  EXPECT_EQ(printable("abfss://container@account/x, s3://b/a@b"), "abfss://container@account/x, s3://b/a@b");
  EXPECT_EQ(printable("a/b?c and ://"), "a/b?c and ://");
}

TEST(printable, long_lists_are_cut_and_counted) {
  EXPECT_EQ(listed(std::vector<std::string>{"a", "b"}), "\"a\", \"b\"");
  const std::string text = listed(std::vector<std::string>(23, "n"));
  EXPECT_EQ(text.substr(text.size() - 14), "\"n\" and 3 more");
}

}  // namespace
}  // namespace shardwright
