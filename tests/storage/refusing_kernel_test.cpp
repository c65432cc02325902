// Loads where the kernel refuses what it usually allows: each in a process whose system calls fail as told.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <functional>
#include <vector>

#include "storage/boxes/box_reading.h"
#include "storage/files/page_cache.h"
#include "storage/files/uring.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

/// Calls of this number fail with this error if they have all `bits` of `mask` set in their argument.
struct Refusal {
  long call;
  int error;
  unsigned argument = 0;
  std::uint32_t mask = 0;
  std::uint32_t bits = 0;
};

bool refuse(const Refusal& refusal) {
  const auto argument =
      static_cast<std::uint32_t>(offsetof(seccomp_data, args) + 8 * std::size_t{refusal.argument});
  std::vector<sock_filter> program = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(refusal.call), 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, refusal.mask),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refusal.bits, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(refusal.error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/// Runs the check in a child that is refused all this. Fails as the check does.
void where(const std::vector<Refusal>& refusals, const std::function<void()>& check) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (const Refusal& refusal : refusals) {
      if (!refuse(refusal)) ::_exit(77);
    }
    try {
      check();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see what the child said above";
}

struct Job {
  Random random{21};
  RandomModel model = random_model(random, 150);
  Checkpoint checkpoint{random, model.stored};
  Destinations destinations{random, model};
  LoadPlan plan = destinations.plan(checkpoint);

  LoadReport run(const LoadOptions& options) const {
    return load(plan, checkpoint.catalog, destinations.specs, options);
  }
};

TEST(refusing_kernel, without_io_uring_files_are_read_by_pread) {
  for (const int error : {EPERM, ENOSYS, ENOMEM}) {
    where({{SYS_io_uring_setup, error}}, [] {
      const Job job;
      LoadOptions options;
      options.direct_io = DirectIo::always;
      const LoadReport report = job.run(options);
      EXPECT_EQ(report.files_io_uring, 0);
      EXPECT_EQ(report.files_direct, allows_direct_reads(job.checkpoint) ? report.files : 0);
      job.destinations.expect_decoded(job.checkpoint);
      options.reads = Reads::io_uring;
      expect_error(ErrorKind::argument, {"io_uring", "pread"}, [&] { job.run(options); });
    });
  }
}

TEST(refusing_kernel, a_file_system_that_knows_no_direct_reads_is_read_through_the_page_cache) {
  where({{SYS_openat, EINVAL, 2, O_DIRECT, O_DIRECT}}, [] {
    const Job job;
    LoadOptions options;
    options.direct_io = DirectIo::always;
    const LoadReport report = job.run(options);
    EXPECT_EQ(report.files_direct, 0);
    job.destinations.expect_decoded(job.checkpoint);
  });
}

TEST(refusing_kernel, direct_reads_that_fail_are_made_again_through_the_page_cache_and_counted_once) {
  // Those past the page cache are of whole pages; what the tensors take is not.
  where({{SYS_pread64, EINVAL, 2, 4095, 0}}, [] {
    const Job job;
    LoadOptions options;
    options.direct_io = DirectIo::always;
    options.reads = Reads::pread;
    const LoadReport report = job.run(options);
    job.destinations.expect_decoded(job.checkpoint);
    EXPECT_EQ(report.bytes_read, reading_figures(job.plan, job.checkpoint.catalog).bytes);
    EXPECT_EQ(report.files_direct, 0);
    EXPECT_GT(report.files, 0);
  });
}

TEST(refusing_kernel, an_error_of_the_disk_is_named) {
  const Job job;
  where({{SYS_pread64, EIO}, {SYS_io_uring_setup, EPERM}}, [&] {
    try {
      job.run({});
      ADD_FAILURE() << "expected an Error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::io);
      EXPECT_EQ(error.system_error, EIO);
      EXPECT_NE(std::string(error.what()).find(".safetensors: cannot read at offset"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("for tensor"), std::string::npos);
    }
  });
}

/// So many more files may be opened from now on.
void allow_only(rlim_t more) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const int next = ::dup(STDERR_FILENO);
  ASSERT_GE(next, 0);
  ::close(next);
  limit.rlim_cur = static_cast<rlim_t>(next) + more;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(refusing_kernel, threads_wait_for_each_others_files_where_few_may_be_open) {
  Random random(22);
  for (int round = 0; round < rounds(40); ++round) {
    RandomModel model = random_model(random, 150);
    const Checkpoint checkpoint(random, model.stored);
    const Destinations destinations(random, model);
    const LoadPlan plan = destinations.plan(checkpoint);
    LoadOptions options;
    choose_reads(random, options);
    options.threads = static_cast<int>(random.between(1, 8));
    const bool in_short_reads = random.once_in(2);
    if (in_short_reads) options.staging_bytes = std::size_t{1} << 20;
    where({}, [&] {
      // The files of one task: weights and scales, each open for both ways to read. And for each thread a
      // ring, and what the C library opens for a moment when a thread first allocates.
      allow_only(4 + 2 * static_cast<rlim_t>(options.threads));
      load(plan, checkpoint.catalog, destinations.specs, options);
      destinations.expect_decoded(checkpoint);
    });
  }
}

constexpr long cachestat = 451;

/// The share of a file's pages that are in memory, as a mapping of it tells.
double resident_share(int descriptor, std::size_t bytes) {
  void* const mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  std::vector<unsigned char> pages(bytes / 4096);
  EXPECT_EQ(::mincore(mapped, bytes, pages.data()), 0);
  ::munmap(mapped, bytes);
  return static_cast<double>(std::count(pages.begin(), pages.end(), 1)) / static_cast<double>(pages.size());
}

/// False for a file system in memory, say.
bool tells_what_is_cached(int descriptor) {
  char byte = 0;
  iovec place{&byte, 1};
  return ::preadv2(descriptor, &place, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
}

TEST(refusing_kernel, what_is_in_the_page_cache_is_sampled_where_it_is_not_counted) {
  const TemporaryDirectory directory;
  for (const int error : {ENOSYS, EPERM}) {
    for (const int kept : {8, 5, 0}) {  // MiB
      // A file of its own: newer kernels read what was asked for before, which arrives after it was dropped.
      const auto path = directory / (std::to_string(error) + "-" + std::to_string(kept));
      write_file(path, std::string(8 << 20, 'x'));
      const int descriptor = ::open(path.c_str(), O_RDONLY);
      ASSERT_GE(descriptor, 0);
      ::fsync(descriptor);
      where({{cachestat, error}}, [&] {
        ASSERT_EQ(::posix_fadvise(descriptor, kept << 20, 0, POSIX_FADV_DONTNEED), 0);
        const double resident = resident_share(descriptor, 8 << 20);
        EXPECT_NEAR(fraction_in_page_cache(descriptor, 8 << 20).value_or(-1),
                    tells_what_is_cached(descriptor) ? resident : -1, 0.1);
      });
      ::close(descriptor);
    }
  }
}

TEST(refusing_kernel, a_page_cache_that_cannot_be_asked_counts_as_full) {
  where({{cachestat, ENOSYS}, {SYS_preadv2, EOPNOTSUPP}}, [] {
    const Job job;
    const LoadReport report = job.run({});
    EXPECT_EQ(report.files_direct, 0);
    job.destinations.expect_decoded(job.checkpoint);
  });
}

}  // namespace
}  // namespace shardwright
