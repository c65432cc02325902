#include "storage/files/uring.h"

#ifdef SHARDWRIGHT_HAS_LIBURING
#include <liburing.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "planner/error.h"

namespace shardwright {

#ifdef SHARDWRIGHT_HAS_LIBURING

namespace {

constexpr int most_tries = 1000;  // a millisecond apart

class LinuxUring final : public Uring {
 public:
  explicit LinuxUring(unsigned depth) {
    int status = 0;
    do {
      status = io_uring_queue_init(depth, &ring_, 0);
    } while (status == -EINTR);
    usable_ = status == 0;
  }
  ~LinuxUring() override {
    if (!usable_) return;
    Completion completion;
    // Where waiting fails the ring is broken, and closing it cancels what is left.
    while (in_flight_ > 0 && next(completion) == 0) continue;
    io_uring_queue_exit(&ring_);
  }
  LinuxUring(const LinuxUring&) = delete;
  LinuxUring& operator=(const LinuxUring&) = delete;

  bool usable() const { return usable_; }

  void read(int descriptor, std::uint64_t offset, void* to, std::uint32_t length,
            std::uint64_t tag) override {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) throw Error(ErrorKind::io, "io_uring: more reads at a time than the ring holds");
    io_uring_prep_read(entry, descriptor, to, length, offset);
    io_uring_sqe_set_data64(entry, tag);
    int submitted = io_uring_submit(&ring_);
    for (int tries = 1; submitted == -EINTR || (submitted == -EAGAIN && tries < most_tries); ++tries) {
      // The kernel has no memory for the request now.
      if (submitted == -EAGAIN) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      submitted = io_uring_submit(&ring_);
    }
    if (submitted < 0) {
      throw Error(ErrorKind::io, std::string("io_uring: cannot submit a read: ") + std::strerror(-submitted),
                  -submitted);
    }
    ++in_flight_;
  }

  Completion wait() override {
    Completion completion;
    const int status = next(completion);
    if (status == 0) return completion;
    throw Error(ErrorKind::io, std::string("io_uring: cannot wait for a read: ") + std::strerror(-status),
                -status);
  }

  std::optional<Completion> wait_for(std::chrono::microseconds longest) override {
    io_uring_cqe* entry = nullptr;
    if (io_uring_peek_cqe(&ring_, &entry) == 0) return taken(entry);
    __kernel_timespec time{longest.count() / 1'000'000, longest.count() % 1'000'000 * 1000};
    if (longest.count() == 0 || io_uring_wait_cqe_timeout(&ring_, &entry, &time) != 0) return std::nullopt;
    return taken(entry);
  }

  unsigned in_flight() const override { return in_flight_; }

 private:
  /// 0 or -errno. Allocates nothing: the destructor needs it where there may be no memory.
  int next(Completion& completion) noexcept {
    io_uring_cqe* entry = nullptr;
    int status = 0;
    do {
      status = io_uring_wait_cqe(&ring_, &entry);
    } while (status == -EINTR || status == -EAGAIN);
    if (status < 0) return status;
    completion = taken(entry);
    return 0;
  }

  Completion taken(io_uring_cqe* entry) noexcept {
    const Completion completion{io_uring_cqe_get_data64(entry), entry->res};
    io_uring_cqe_seen(&ring_, entry);
    --in_flight_;
    return completion;
  }

  io_uring ring_{};
  bool usable_ = false;
  unsigned in_flight_ = 0;
};

}  // namespace

std::unique_ptr<Uring> Uring::create(unsigned depth) {
  auto ring = std::make_unique<LinuxUring>(depth);
  if (!ring->usable()) return nullptr;
  return ring;
}

#else

std::unique_ptr<Uring> Uring::create(unsigned) { return nullptr; }

#endif

bool has_io_uring() { return Uring::create(1) != nullptr; }

}  // namespace shardwright
