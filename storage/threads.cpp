#include "storage/threads.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace shardwright {

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  return std::max(1, known ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency()));
}

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

void prepare_for_exceptions() {
  // What this library keeps in each thread, and what the runtime does. Its answer has to go somewhere, or the
  // compiler leaves the question out.
  [[maybe_unused]] thread_local volatile int uncaught = 0;
  uncaught = std::uncaught_exceptions();
}

void for_each_index(std::size_t count, int threads, const std::function<void(std::size_t)>& work) {
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  std::exception_ptr fault;
  std::size_t faulty = count;
  const auto run = [&] {
    prepare_for_exceptions();
    for (std::size_t i = next++; i < count && !failed; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        failed = true;
        if (i < faulty) {
          faulty = i;
          fault = std::current_exception();
        }
      }
    }
  };
  {
    const auto wanted = static_cast<std::size_t>(threads > 0 ? threads : processors());
    std::vector<std::jthread> others;  // joined at the end of the block
    try {
      for (std::size_t t = 1; t < std::min(wanted, count); ++t) others.emplace_back(run);
    } catch (const std::system_error&) {  // the process may have no more threads: fewer do the work
    } catch (...) {
      failed = true;
      throw;
    }
    run();
  }
  if (fault) std::rethrow_exception(fault);
}

void on_its_own_thread(const std::function<void()>& work) {
  std::exception_ptr failure;
  std::thread([&] {
    prepare_for_exceptions();
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace shardwright
