#include "storage/files/uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <vector>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(uring, reads_arrive_in_any_order_each_with_its_tag) {
  const TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i) + ' ';
  write_file(directory / "file", text);
  const int descriptor = ::open((directory / "file").c_str(), O_RDONLY);
  const auto ring = Uring::create(8);
  if (!ring) return;  // this kernel lets nobody have one; loads then use pread
  std::map<std::uint64_t, std::vector<char>> pieces;
  std::uint64_t begun = 0;
  std::uint64_t arrived = 0;
  while (arrived < 100) {
    while (begun < 100 && ring->in_flight() < 8) {
      pieces[begun].resize(100);
      ring->read(descriptor, begun * 37, pieces[begun].data(), 100, begun);
      ++begun;
    }
    const Uring::Completion completion = ring->wait();
    ASSERT_EQ(completion.result, 100);
    const std::vector<char>& piece = pieces.at(completion.tag);
    ASSERT_EQ(std::string(piece.begin(), piece.end()), text.substr(completion.tag * 37, 100));
    ++arrived;
  }
  EXPECT_EQ(ring->in_flight(), 0U);
  ::close(descriptor);
}

TEST(uring, tells_the_end_of_a_file_and_errors) {
  const TemporaryDirectory directory;
  write_file(directory / "file", "twelve bytes");
  const int descriptor = ::open((directory / "file").c_str(), O_RDONLY);
  const auto ring = Uring::create(2);
  if (!ring) return;
  std::vector<char> buffer(100);
  ring->read(descriptor, 5, buffer.data(), 100, 1);
  EXPECT_EQ(ring->wait().result, 7);
  ring->read(descriptor, 500, buffer.data(), 100, 1);
  EXPECT_EQ(ring->wait().result, 0);
  ::close(descriptor);
  ring->read(descriptor, 0, buffer.data(), 100, 1);
  EXPECT_EQ(ring->wait().result, -EBADF);
}

TEST(uring, what_is_still_in_flight_has_arrived_when_the_ring_is_gone) {
  const TemporaryDirectory directory;
  write_file(directory / "file", std::string(1 << 20, 'x'));
  const int descriptor = ::open((directory / "file").c_str(), O_RDONLY);
  std::vector<std::vector<char>> buffers(8, std::vector<char>(1 << 17));
  auto ring = Uring::create(8);
  if (!ring) return;
  for (std::uint64_t i = 0; i < 8; ++i) ring->read(descriptor, i << 17, buffers[i].data(), 1 << 17, i);
  ring.reset();
  for (const std::vector<char>& buffer : buffers) EXPECT_EQ(buffer, std::vector<char>(1 << 17, 'x'));
  ::close(descriptor);
}

}  // namespace
}  // namespace shardwright
