#include "storage/files/upload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

constexpr std::uint64_t part = std::uint64_t{8} << 20;

/// Keeps what is sent, and makes sure that it comes in order, a part at a time.
struct Kept {
  std::string bytes;
  std::size_t parts = 0;
  std::atomic<int> inside = 0;

  SendPart send() {
    return [this](const std::string& name, std::uint64_t file_bytes, FilePart sent) {
      EXPECT_EQ(inside++, 0);
      EXPECT_EQ(name, "x");
      EXPECT_EQ(sent.begin, bytes.size());
      EXPECT_LE(sent.begin + sent.size, file_bytes);
      if (sent.size > 0) bytes.append(reinterpret_cast<const char*>(sent.bytes.get()), sent.size);
      ++parts;
      --inside;
    };
  }
};

std::string random_bytes(std::uint64_t size) {
  std::mt19937_64 random(size);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

void write(Upload& upload, const std::string& bytes, std::uint64_t begin, std::uint64_t count) {
  upload.write(begin, reinterpret_cast<const std::byte*>(bytes.data()) + begin, count);
}

template <typename Run>
void expect_error(ErrorKind kind, const std::string& part_of_message, const Run& run) {
  try {
    run();
    FAIL() << "expected an error with " << part_of_message;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, kind);
    EXPECT_NE(std::string(error.what()).find(part_of_message), std::string::npos) << error.what();
  }
}

TEST(Upload, PartsAreThoseOfTheStoreAndNoMoreThanItTakes) {
  EXPECT_EQ(bytes_of_part(0), part);
  EXPECT_EQ(bytes_of_part(1), part);
  EXPECT_EQ(bytes_of_part(8192 * part), part);
  EXPECT_EQ(bytes_of_part(8192 * part + 1), 2 * part);
  EXPECT_LE((std::uint64_t{5} << 40) / bytes_of_part(std::uint64_t{5} << 40), 8192U);  // the largest of S3
}

TEST(Upload, WhatThreadsWriteInAnyOrderIsSentInOrder) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, part, 3 * part + 12345}) {
    const std::string bytes = random_bytes(size);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> pieces;
    std::mt19937_64 random(7);
    for (std::uint64_t begin = 0; begin < size;) {
      const std::uint64_t count = std::min<std::uint64_t>(size - begin, 1 + random() % (part / 2));
      pieces.emplace_back(begin, count);
      begin += count;
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
    Kept kept;
    Upload upload("x", size, kept.send());
    for_each_index(pieces.size(), 4,
                   [&](std::size_t i) { write(upload, bytes, pieces[i].first, pieces[i].second); });
    upload.finish();
    upload.finish();
    EXPECT_EQ(kept.parts, std::max<std::uint64_t>(1, (size + part - 1) / part));
    EXPECT_TRUE(kept.bytes == bytes) << size;
  }
}

TEST(Upload, WhoWritesInOrderHoldsAFewPartsWhileSendingIsSlow) {
  const std::string bytes = random_bytes(20 * part);
  Kept kept;
  const SendPart keep = kept.send();
  std::latch is_sending(1);
  std::latch is_ahead(1);
  Upload upload("x", bytes.size(), [&](const std::string& name, std::uint64_t size, FilePart sent) {
    if (sent.begin == 0) {
      is_sending.count_down();
      is_ahead.wait();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    keep(name, size, std::move(sent));
  });
  std::thread sender([&] { write(upload, bytes, 0, part); });  // and sends what the other writes meanwhile
  is_sending.wait();
  const std::uint64_t block = part / 2;
  write(upload, bytes, part, block);
  is_ahead.count_down();
  for (std::uint64_t begin = part + block; begin < bytes.size(); begin += block)
    write(upload, bytes, begin, block);
  sender.join();
  upload.finish();
  EXPECT_TRUE(kept.bytes == bytes);
  EXPECT_GT(upload.peak_bytes(), part);
  EXPECT_LE(upload.peak_bytes(), 4 * part);
}

TEST(Upload, WhatSendingThrowsEndsAllWhoWrite) {
  const std::string bytes = random_bytes(9 * part);
  Upload upload("x", bytes.size(), [](const std::string&, std::uint64_t, const FilePart& sent) {
    if (sent.begin > 0) throw Error(ErrorKind::io, "the store is full");
  });
  expect_error(ErrorKind::io, "the store is full",
               [&] { for_each_index(9, 3, [&](std::size_t i) { write(upload, bytes, i * part, part); }); });
  expect_error(ErrorKind::io, "the store is full", [&] { upload.finish(); });
}

TEST(Upload, BytesThatLackOrAreTooManyAreRefused) {
  const std::string bytes = random_bytes(2 * part);
  Kept kept;
  Upload upload("x", bytes.size(), kept.send());
  write(upload, bytes, part, part);
  expect_error(ErrorKind::argument, "8388608 bytes from byte 0 on have not been written",
               [&] { upload.finish(); });
  expect_error(ErrorKind::malformed, "each byte once", [&] { write(upload, bytes, part + 5, 1); });
  write(upload, bytes, 0, part);
  expect_error(ErrorKind::malformed, "each byte once", [&] { write(upload, bytes, 5, 1); });
  const std::byte byte{};
  expect_error(ErrorKind::argument, "expected bytes of a file", [&] { upload.write(2 * part, &byte, 1); });
  upload.finish();
  EXPECT_TRUE(kept.bytes == bytes);
}

}  // namespace
}  // namespace shardwright
