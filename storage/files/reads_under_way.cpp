#include "storage/files/reads_under_way.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "storage/files/plain_http.h"
#include "storage/files/uring.h"
#include "storage/nap.h"

namespace shardwright {
namespace {

class ReadsByUring final : public ReadsUnderWay {
 public:
  explicit ReadsByUring(std::unique_ptr<Uring> ring) : ring_(std::move(ring)) {}

  void read(const InputFile&, int descriptor, std::uint64_t offset, std::byte* to, std::uint32_t length,
            std::uint64_t tag) override {
    ring_->read(descriptor, offset, to, length, tag);
  }

  Completion wait() override {
    const Uring::Completion completion = ring_->wait();
    return {completion.tag, completion.result, nullptr, nullptr};
  }

  std::optional<Completion> wait_for(std::chrono::microseconds longest) override {
    const std::optional<Uring::Completion> completion = ring_->wait_for(longest);
    if (!completion) return std::nullopt;
    return Completion{completion->tag, completion->result, nullptr, nullptr};
  }

 private:
  const std::unique_ptr<Uring> ring_;
};

/// Makes the bytes as aligned as in their file, where numbers of 8 bytes may begin at multiples of 8.
ArrivedBytes aligned_as_in_file(ArrivedBytes bytes, std::uint64_t offset, std::size_t length) {
  constexpr std::uint64_t alignment = 8;
  const std::uint64_t shift = offset % alignment;
  if (reinterpret_cast<std::uintptr_t>(bytes.get()) % alignment == shift) return bytes;
  const auto memory = std::make_shared_for_overwrite<std::byte[]>(shift + length);
  std::copy_n(bytes.get(), length, memory.get() + shift);
  return {memory, memory.get() + shift};
}

/// Of a range that plain HTTP has not brought, at a time.
constexpr std::size_t bytes_of_rest = std::size_t{1} << 20;

/// Threads that each have a request of their own under way. They are started as requests come.
class ReadsOfObjects final : public ReadsUnderWay {
 public:
  ReadsOfObjects(unsigned connections, const std::atomic<bool>* given_up)
      : most_threads_(connections), given_up_(given_up) {
    threads_.reserve(connections);
  }

  ~ReadsOfObjects() override {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      wanted_.clear();
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void read(const InputFile& file, int, std::uint64_t offset, std::byte* to, std::uint32_t length,
            std::uint64_t tag) override {
    bool needs_thread = false;
    {
      const std::lock_guard lock(mutex_);
      wanted_.push_back({&file, offset, to, length, tag});
      needs_thread = wanted_.size() > idle_ && threads_.size() < most_threads_;
    }
    changed_.notify_one();
    if (!needs_thread) return;
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {  // the process may have no more threads: fewer do the work
      if (threads_.empty()) throw;
    }
  }

  Completion wait() override {
    for (;;) {
      if (std::optional<Completion> completion = wait_for(nap)) return *completion;
      if (given_up_ != nullptr && *given_up_) throw Error(ErrorKind::io, "the reads were given up");
    }
  }

  std::optional<Completion> wait_for(std::chrono::microseconds longest) override {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, longest, [&] { return !done_.empty(); })) return std::nullopt;
    Completion completion = std::move(done_.front());
    done_.pop_front();
    return completion;
  }

 private:
  struct Wanted {
    const InputFile* file;
    std::uint64_t offset;
    std::byte* to;
    std::uint32_t length;
    std::uint64_t tag;
  };

  /// Brings the bytes to where they are wanted, if that has been said.
  ArrivedBytes bytes_of(const Wanted& wanted, PlainHttp& plain_http) const {
    const InputFile& file = *wanted.file;
    if (wanted.to == nullptr) {
      ArrivedBytes bytes = file.read_object(wanted.offset, wanted.length, stopped_);
      return bytes == nullptr ? bytes : aligned_as_in_file(std::move(bytes), wanted.offset, wanted.length);
    }
    const std::optional<std::size_t> there =
        plain_http.receive(file, wanted.offset, wanted.length, wanted.to, stopped_);
    // What has not come so is read in small pieces: its place is taken already, and so is the others'.
    const std::size_t piece = there ? bytes_of_rest : wanted.length;
    for (std::size_t done = there.value_or(0); done < wanted.length;) {
      const std::size_t count = std::min(wanted.length - done, piece);
      const ArrivedBytes rest = file.read_object(wanted.offset + done, count, stopped_);
      if (rest == nullptr) break;
      std::copy_n(rest.get(), count, wanted.to + done);
      done += count;
    }
    return nullptr;
  }

  void work() {
    PlainHttp plain_http;
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      changed_.wait(lock, [&] { return stopped_ || !wanted_.empty(); });
      --idle_;
      if (stopped_) return;
      const Wanted wanted = wanted_.front();
      wanted_.pop_front();
      lock.unlock();
      Completion completion{wanted.tag, wanted.length, nullptr, nullptr};
      try {
        completion.bytes = bytes_of(wanted, plain_http);
      } catch (...) {
        completion.failure = std::current_exception();
      }
      lock.lock();
      done_.push_back(std::move(completion));
      arrived_.notify_one();
    }
  }

  const std::size_t most_threads_;
  const std::atomic<bool>* const given_up_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_, arrived_;
  std::deque<Wanted> wanted_;
  std::deque<Completion> done_;
  std::size_t idle_ = 0;
  std::atomic<bool> stopped_{false};
};

}  // namespace

std::unique_ptr<ReadsUnderWay> reads_by_uring(unsigned depth) {
  std::unique_ptr<Uring> ring = Uring::create(depth);
  return ring ? std::make_unique<ReadsByUring>(std::move(ring)) : nullptr;
}

std::unique_ptr<ReadsUnderWay> reads_of_objects(unsigned connections, const std::atomic<bool>* stopped) {
  return std::make_unique<ReadsOfObjects>(connections, stopped);
}

}  // namespace shardwright
