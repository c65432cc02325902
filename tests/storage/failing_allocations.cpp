#include "tests/storage/failing_allocations.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <system_error>
#include <thread>

#include "planner/error.h"

namespace {

// No types that allocate: they are used from the beginning of the process to its end.
std::atomic<bool> armed{false};
std::atomic<bool> all_that_follow{false};
std::atomic<std::int64_t> failing_one{0};
std::atomic<std::int64_t> asked{0};
std::atomic<std::int64_t> living{0};

bool fails() {
  if (!armed) return false;
  const std::int64_t number = ++asked;
  return number == failing_one || (all_that_follow && number > failing_one);
}

void* allocated(std::size_t bytes, std::size_t alignment) {
  void* memory = nullptr;
  if (fails() || ::posix_memalign(&memory, alignment, bytes == 0 ? 1 : bytes) != 0) throw std::bad_alloc();
  ++living;
  return memory;
}

void freed(void* memory) {
  if (memory == nullptr) return;
  --living;
  std::free(memory);
}

}  // namespace

// All of this program's, in the place of the library's own.
void* operator new(std::size_t bytes) { return allocated(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocated(bytes, static_cast<std::size_t>(alignment));
}
// AddressSanitizer's own form does not call the one above, as the library's does.
void* operator new(std::size_t bytes, const std::nothrow_t& /*tag*/) noexcept {
  try {
    return allocated(bytes, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { freed(memory); }
void operator delete(void* memory, std::size_t) noexcept { freed(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { freed(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { freed(memory); }

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  void* memory = nullptr;
  return fails() || ::posix_memalign(&memory, alignment, bytes) != 0 ? nullptr : memory;
}

// Sanitizers have to see threads made by their own.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SHARDWRIGHT_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SHARDWRIGHT_SANITIZED
#endif

#ifndef SHARDWRIGHT_SANITIZED
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                              void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(::dlsym(RTLD_NEXT, "pthread_create"));
  return fails() ? EAGAIN : create(thread, attributes, run, argument);
}
#endif

namespace shardwright {
namespace {

std::int64_t entries_of(const char* directory) {
  std::int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
  return count;
}

/// Threads that have been joined, and those of a ring that is gone, are listed for a moment more.
bool ends_with_threads(std::int64_t most) {
  for (int wait = 0; wait < 5000 && entries_of("/proc/self/task") > most; ++wait)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return entries_of("/proc/self/task") <= most;
}

/// Runs the work with one allocation that fails, or some. False if there were not so many.
bool came_to(std::int64_t failing, Shortage shortage, std::int64_t most_is_lost, std::int64_t most_threads,
             const std::function<void()>& work, Outcome& outcome) {
  const std::int64_t descriptors = entries_of("/proc/self/fd");
  const std::int64_t before = living;
  std::int64_t kept = 0;  // for the outcome
  failing_one = failing;
  all_that_follow = shortage == Shortage::of_all_that_follow;
  asked = 0;
  armed = true;
  try {
    work();
    armed = false;
  } catch (const std::bad_alloc&) {
    armed = false;
    outcome.kind = Outcome::Kind::no_memory;
  } catch (const Error& error) {
    armed = false;
    outcome.kind = error.system_error == ENOMEM ? Outcome::Kind::no_memory : Outcome::Kind::error;
    outcome.is_told = true;
    const std::int64_t with_error = living;
    outcome.partly_written = error.partly_written;
    kept = living - with_error;
  } catch (const std::system_error& error) {
    armed = false;
    outcome.kind = Outcome::Kind::error;
    EXPECT_EQ(error.code().value(), EAGAIN) << error.what();
  }
  const std::int64_t lost = living - kept - before;
  EXPECT_TRUE(lost >= 0 && lost <= most_is_lost) << lost << " lost by allocation " << failing;
  EXPECT_EQ(entries_of("/proc/self/fd"), descriptors) << "allocation " << failing;
  EXPECT_TRUE(ends_with_threads(most_threads)) << "allocation " << failing;
  return asked >= failing;
}

}  // namespace

int fail_each_allocation(const Failures& failures, const std::function<void()>& work,
                         const std::function<void(const Outcome&)>& check) {
  work();  // what is made once for the process is there from now on
  check({});
  const std::int64_t threads = entries_of("/proc/self/task");
  int failed = 0;
  for (const Shortage shortage : {Shortage::of_one, Shortage::of_all_that_follow}) {
    for (std::int64_t failing = 1; !testing::Test::HasFailure(); failing += failures.stride) {
      Outcome outcome;
      const bool came = came_to(failing, shortage, failures.most_is_lost, threads, work, outcome);
      check(outcome);
      EXPECT_TRUE(came || outcome.kind == Outcome::Kind::success);
      if (!came) break;
      ++failed;
    }
  }
  return failed;
}

}  // namespace shardwright
