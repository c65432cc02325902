#include "storage/uring.h"

#ifdef SHARDWRIGHT_HAS_LIBURING
#include <liburing.h>
#endif

#include <cerrno>
#include <cstring>
#include <string>

#include "planner/error.h"

namespace shardwright {

#ifdef SHARDWRIGHT_HAS_LIBURING

namespace {

class LinuxUring final : public Uring {
 public:
  explicit LinuxUring(unsigned depth) : usable_(io_uring_queue_init(depth, &ring_, 0) == 0) {}
  ~LinuxUring() override {
    if (!usable_) return;
    try {
      while (in_flight_ > 0) wait();
    } catch (const Error&) {  // the ring is broken; closing it cancels what is left
      in_flight_ = 0;
    }
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
    int submitted = 0;
    do {
      submitted = io_uring_submit(&ring_);
    } while (submitted == -EINTR || submitted == -EAGAIN);
    if (submitted < 0) {
      throw Error(ErrorKind::io, std::string("io_uring: cannot submit a read: ") + std::strerror(-submitted),
                  -submitted);
    }
    ++in_flight_;
  }

  Completion wait() override {
    io_uring_cqe* entry = nullptr;
    int status = 0;
    do {
      status = io_uring_wait_cqe(&ring_, &entry);
    } while (status == -EINTR || status == -EAGAIN);
    if (status < 0) {
      throw Error(ErrorKind::io, std::string("io_uring: cannot wait for a read: ") + std::strerror(-status),
                  -status);
    }
    const Completion completion{io_uring_cqe_get_data64(entry), entry->res};
    io_uring_cqe_seen(&ring_, entry);
    --in_flight_;
    return completion;
  }

  unsigned in_flight() const override { return in_flight_; }

 private:
  io_uring ring_{};
  bool usable_;
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
