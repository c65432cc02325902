#include "storage/format/checkpoint_place.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "planner/error.h"

namespace shardwright {
namespace {

std::string refusal_of(const std::filesystem::path& path) {
  try {
    expect_local_path(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::argument);
    return error.what();
  }
  return {};
}

TEST(CheckpointPlace, AddressesAreNoPathsWhateverTheirScheme) {
  for (const char* path : {"s3://bucket/x", "S3://bucket", "gs://b/x", "unknown+x://host/x"}) {
    EXPECT_NE(refusal_of(path).find("addresses are not taken here"), std::string::npos) << path;
  }
  EXPECT_NE(refusal_of("hf://a/b").find("hf download"), std::string::npos);
  EXPECT_NE(refusal_of("file:///a").find("leave out file://"), std::string::npos);
}

TEST(CheckpointPlace, WhatPathlibMakesOfAnAddressIsOne) {
  EXPECT_NE(refusal_of("s3:/bucket/x"), "");
  EXPECT_NE(refusal_of("hf:/a/b"), "");
}

TEST(CheckpointPlace, OtherColonsAreAllowed) {
  for (const char* path :
       {"run:1", "run:/x", "a:b/c", "./s3:/x", "/data/s3:/x", "c:/x", ":/x", "12:/x", "./~", "~x"}) {
    EXPECT_EQ(refusal_of(path), "") << path;
  }
}

TEST(CheckpointPlace, WhatOnlyAShellUnderstandsIsRefused) {
  EXPECT_NE(refusal_of("").find("empty"), std::string::npos);
  for (const char* path : {"~", "~/x"})
    EXPECT_NE(refusal_of(path).find("expanduser"), std::string::npos) << path;
}

TEST(CheckpointPlace, OnlyTwoPlainNamesWithoutTheirFolderLookLikeAHubId) {
  const std::string hub = "hub repository";
  EXPECT_NE(advice_for_absent("owner-x/name_1.5").find(hub), std::string::npos);
  for (const char* path : {"owner", "a/b/c", "/a/b", "./name", "../name", "owner/", "owner/na me"}) {
    EXPECT_EQ(advice_for_absent(path), "give the directory of a checkpoint") << path;
  }
}

TEST(CheckpointPlace, APointerIsToldByItsFirstLine) {
  EXPECT_THROW(expect_no_git_lfs_pointer("version https://git-lfs.github.com/spec/v1\noid", "f"), Error);
  expect_no_git_lfs_pointer("version https://git", "f");
  expect_no_git_lfs_pointer("", "f");
}

}  // namespace
}  // namespace shardwright
