#include "storage/load/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "storage/load/piece_ring.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/child_processes.h"

namespace shardwright {
namespace {

constexpr std::size_t bytes = std::size_t{1} << 20;

#ifdef __SANITIZE_THREAD__
constexpr bool is_taken_in_a_child = true;  // by the stack of ThreadSanitizer's own thread
#else
constexpr bool is_taken_in_a_child = false;
#endif

TEST(shared_memory, another_process_that_opens_it_sees_what_is_written) {
  const SharedMemory memory = SharedMemory::create(bytes);
  std::memset(memory.data() + bytes - 4, 7, 4);
  const std::string path = memory.path();
  EXPECT_TRUE(ended_well(in_child([&] {
    const SharedMemory same = SharedMemory::open(path, bytes);
    same.data()[0] = std::byte{9};
    return same.data()[bytes - 1] == std::byte{7};
  })));
  EXPECT_EQ(memory.data()[0], std::byte{9});
}

TEST(shared_memory, a_child_does_not_keep_it) {
  if (is_taken_in_a_child) GTEST_SKIP() << "what is free in a child is ThreadSanitizer's";
  const SharedMemory memory = SharedMemory::create(bytes);
  const pid_t child = in_child([&] {
    std::signal(SIGSEGV, SIG_DFL);  // not a sanitizer's report
    return memory.data()[0] == std::byte{0};
  });
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << "its pages are not the child's";
  EXPECT_NE(::fcntl(std::stoi(memory.path().substr(memory.path().rfind('/') + 1)), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(shared_memory, nobody_can_make_it_shorter) {
  const SharedMemory memory = SharedMemory::create(bytes);
  const int descriptor = ::open(memory.path().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  EXPECT_NE(::ftruncate(descriptor, 0), 0);
  ::close(descriptor);
}

TEST(shared_memory, what_is_none_is_refused) {
  const SharedMemory memory = SharedMemory::create(bytes);
  expect_error(ErrorKind::io, {"shared memory", "is not sealed memory of 4096 bytes"},
               [&] { SharedMemory::open(memory.path(), 4096); });
  expect_error(ErrorKind::io, {"/proc/self/exe"}, [] { SharedMemory::open("/proc/self/exe", bytes); });
  expect_error(ErrorKind::io, {"/dev/null", "is not sealed memory"},
               [] { SharedMemory::open("/dev/null", bytes); });
  expect_error(ErrorKind::io, {"cannot open"}, [] { SharedMemory::open("/proc/1/fd/none", bytes); });
  const std::string plain =
      ::testing::TempDir() + "shared_memory_test_plain";  // can be cut short at any time
  std::ofstream(plain) << std::string(bytes, 'a');
  expect_error(ErrorKind::io, {"is not sealed memory"}, [&] { SharedMemory::open(plain, bytes); });
  ::unlink(plain.c_str());
}

TEST(shared_memory, a_child_lets_go_of_it_without_touching_what_lies_there_now) {
  if (is_taken_in_a_child) GTEST_SKIP() << "what is free in a child is ThreadSanitizer's";
  std::optional<SharedMemory> memory = SharedMemory::create(bytes);
  memory->forget_path();
  EXPECT_TRUE(ended_well(in_child([&] {
    void* const own = ::mmap(memory->data(), bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (own != memory->data()) return false;
    std::byte* const data = memory->data();
    memory.reset();
    data[0] = std::byte{1};  // is still there
    return true;
  })));
}

TEST(shared_memory, more_than_there_is_is_refused_before_any_is_taken) {
  constexpr std::size_t petabyte = std::size_t{1} << 50;
  expect_error(ErrorKind::io, {"shared memory: the system has no 1125899906842624 bytes for it"},
               [] { SharedMemory::create(petabyte); });
}

TEST(shared_memory, more_than_the_system_gives_is_an_error_that_says_so) {
  EXPECT_TRUE(ended_well(in_child([] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
    expect_error(ErrorKind::io, {"shared memory: the system has no 1048576 bytes for it"},
                 [] { SharedMemory::create(bytes); });
    return !testing::Test::HasFailure();
  })));
}

TEST(shared_memory, a_process_that_has_ended_is_seen_even_before_its_parent_asks) {
  EXPECT_FALSE(NodeProcess::own().is_gone());
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = in_child([&] {
    const NodeProcess own = NodeProcess::own();
    return ::write(ends[1], &own, sizeof own) == sizeof own && ::pause() == 0;
  });
  NodeProcess process;
  ASSERT_EQ(::read(ends[0], &process, sizeof process), static_cast<ssize_t>(sizeof process));
  EXPECT_FALSE(process.is_gone());
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  siginfo_t info;
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(process.is_gone()) << "a zombie";
  EXPECT_FALSE(ended_well(child));
  EXPECT_TRUE(process.is_gone());
  EXPECT_TRUE(ended_well(in_child([] {
    const NodeProcess parent{::getppid(), 0};
    const rlimit none{0, 0};
    return !parent.is_gone() && ::setrlimit(RLIMIT_NOFILE, &none) == 0 && !parent.is_gone();
  }))) << "where no file can be opened, nothing is known";
  process = NodeProcess::own();
  process.started += 1;
  EXPECT_TRUE(process.is_gone()) << "another process of that number";
  ::close(ends[0]);
  ::close(ends[1]);
}

/// Reads pieces into the ring, as the numbers that they are, and takes a share of each.
bool pass_all(PieceRing& ring, std::uint64_t pieces, std::uint64_t slot_bytes, std::uint32_t ranks) {
  std::uint64_t to_take = 0;
  while (to_take < pieces || !ring.all_are_read()) {
    const std::uint32_t seen = ring.events();
    bool idle = true;
    if (const std::optional<std::uint64_t> piece = ring.next_to_read()) {
      std::memset(ring.slot_of(*piece), static_cast<int>(*piece % 251), slot_bytes);
      ring.publish(*piece, {*piece % 5, *piece % 7, 0}, ranks);
      idle = false;
    }
    if (to_take < pieces && ring.is_there(to_take)) {
      const PieceRing::Place place = ring.place_of(to_take);
      const std::byte* const slot = ring.slot_of(to_take);
      const auto expected = static_cast<std::byte>(to_take % 251);
      if (place.elements != to_take % 5 || place.scales != to_take % 7) return false;
      if (slot[0] != expected || slot[slot_bytes - 1] != expected) return false;
      ring.give_back(to_take++);
      idle = false;
    }
    if (idle) ring.wait(seen, std::chrono::milliseconds(20));
  }
  return true;
}

TEST(piece_ring, every_rank_gets_every_piece_whole_though_slots_are_few) {
  constexpr std::uint32_t ranks = 3;
  const PieceRing::Sizes sizes{ranks, 2, 4096, 2000};
  const SharedMemory memory = SharedMemory::create(PieceRing::bytes_of(sizes));
  std::vector<pid_t> children;
  for (std::uint32_t rank = 1; rank < ranks; ++rank) {
    children.push_back(in_child([&] {
      const SharedMemory same = SharedMemory::open(memory.path(), PieceRing::bytes_of(sizes));
      PieceRing ring(same, sizes, rank);
      ring.join();
      return pass_all(ring, sizes.pieces, sizes.slot_bytes, ranks);
    }));
  }
  PieceRing ring(memory, sizes, 0);
  ring.join();
  EXPECT_TRUE(pass_all(ring, sizes.pieces, sizes.slot_bytes, ranks));
  for (const pid_t child : children) EXPECT_TRUE(ended_well(child));
  EXPECT_FALSE(ring.failed());
}

TEST(piece_ring, a_slot_is_free_only_when_its_last_share_is_given_back) {
  const PieceRing::Sizes sizes{1, 2, 4096, 5};
  const SharedMemory memory = SharedMemory::create(PieceRing::bytes_of(sizes));
  PieceRing ring(memory, sizes, 0);
  EXPECT_EQ(ring.next_to_read(), 0u);
  EXPECT_EQ(ring.next_to_read(), 1u);
  EXPECT_EQ(ring.next_to_read(), std::nullopt);
  EXPECT_FALSE(ring.is_there(0));
  ring.publish(0, {}, 2);
  EXPECT_TRUE(ring.is_there(0));
  EXPECT_FALSE(ring.is_there(2)) << "which is to come to the same slot";
  ring.give_back(0);
  EXPECT_EQ(ring.next_to_read(), std::nullopt);
  ring.give_back(0);
  EXPECT_EQ(ring.next_to_read(), 2u);
  EXPECT_FALSE(ring.all_are_read());
}

TEST(piece_ring, ranks_that_fail_or_end_are_seen_by_the_others) {
  const PieceRing::Sizes sizes{3, 2, 4096, 5};
  const SharedMemory memory = SharedMemory::create(PieceRing::bytes_of(sizes));
  PieceRing ring(memory, sizes, 0);
  ring.join();
  EXPECT_EQ(ring.gone(), std::nullopt) << "others have not joined";
  EXPECT_TRUE(ended_well(in_child([&] {
    const SharedMemory same = SharedMemory::open(memory.path(), PieceRing::bytes_of(sizes));
    PieceRing(same, sizes, 2).join();
    return true;
  })));
  EXPECT_EQ(ring.gone(), 2u);
  EXPECT_EQ(ring.failed(), std::nullopt);
  PieceRing(memory, sizes, 1).fail();
  ring.fail();
  EXPECT_EQ(ring.failed(), 1u) << "the first";
}

}  // namespace
}  // namespace shardwright
