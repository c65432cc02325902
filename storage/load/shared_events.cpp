#include "storage/load/shared_events.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace shardwright {

// Either the waiter sees the new number, or this sees the waiter: both are sequentially consistent.
void SharedEvents::happened() {
  number.fetch_add(1);
  if (waiting.load() == 0) return;
  ::syscall(SYS_futex, &number, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void SharedEvents::wait(std::uint32_t since, std::chrono::microseconds longest) {
  const timespec time{longest.count() / 1'000'000, longest.count() % 1'000'000 * 1000};
  waiting.fetch_add(1);
  if (number.load() == since) ::syscall(SYS_futex, &number, FUTEX_WAIT, since, &time, nullptr, 0);
  waiting.fetch_sub(1);
}

}  // namespace shardwright
