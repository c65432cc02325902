#include "storage/handover/inbox.h"

#include <atomic>
#include <cerrno>
#include <new>
#include <span>
#include <utility>

#include "planner/error.h"
#include "storage/handover/message_memory.h"
#include "storage/load/shared_events.h"
#include "storage/memory_units.h"
#include "storage/nap.h"
#include "storage/rounded_up.h"
#include "storage/seconds.h"

namespace shardwright {
namespace {

/// At the begin of an inbox; then a Stream for each rank that sends to it, then the places of their messages,
/// and from the next page on the messages.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
struct Head {
  SharedEvents arrived;  // for the receiver
  SharedEvents opened;   // for those that send
  std::atomic<std::uint64_t> open;
  NodeProcess receiver;
  std::uint64_t streams;
};

struct alignas(64) Stream {
  std::atomic<std::uint64_t> sent;
  std::int32_t rank;
  NodeMember sender;
  std::uint64_t first;  // of all places
  std::uint64_t messages;
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

Head& head_of(const SharedMemory& memory) { return *reinterpret_cast<Head*>(memory.data()); }

std::span<Stream> streams_of(const SharedMemory& memory, std::size_t count) {
  return {reinterpret_cast<Stream*>(memory.data() + rounded_up(sizeof(Head), alignof(Stream))), count};
}

std::uint64_t* places_of(const SharedMemory& memory, std::size_t streams) {
  return reinterpret_cast<std::uint64_t*>(streams_of(memory, streams).data() + streams);
}

std::size_t bytes_before(std::size_t streams, std::size_t messages) {
  return rounded_up(
      rounded_up(sizeof(Head), alignof(Stream)) + streams * sizeof(Stream) + messages * sizeof(std::uint64_t),
      page);
}

std::size_t messages_in(const InboxPlaces& places) {
  std::size_t count = 0;
  for (const InboxPlaces::Stream& stream : places.streams) count += stream.messages.size();
  return count;
}

std::size_t size_of(const InboxPlaces& places) {
  return bytes_before(places.streams.size(), messages_in(places)) + places.bytes;
}

/// What a counter says once `number` of `count` things of a hand-over are there; more than for any before.
std::uint64_t told(std::uint64_t turn, std::size_t count, std::size_t number) {
  return turn * (count + 1) + number + 1;
}

/// Waits until the counter says so much. False if that was stopped. `has_ended` is asked of a rank that says
/// nothing.
template <typename HasEnded>
bool wait_until(const std::atomic<std::uint64_t>& counter, std::uint64_t expected, SharedEvents& events,
                int rank, const InboxWaiting& waiting, const HasEnded& has_ended) {
  Clock::time_point last = Clock::now();
  std::uint64_t before = counter.load(std::memory_order_acquire);
  while (true) {
    const std::uint32_t seen = events.number.load();
    const std::uint64_t now = counter.load(std::memory_order_acquire);
    if (now >= expected) return true;
    if (waiting.is_stopped && waiting.is_stopped()) return false;
    if (now != before) last = Clock::now();
    before = now;
    events.wait(seen, nap);
    if (events.number.load() != seen || counter.load(std::memory_order_acquire) != before) continue;
    if (has_ended())
      throw Error(ErrorKind::io, "rank " + std::to_string(rank) + " has ended in the middle of a hand-over",
                  ECONNRESET);
    if (Clock::now() - last < waiting.timeout) continue;
    throw Error(ErrorKind::io,
                "rank " + std::to_string(rank) + " has done nothing for " +
                    std::to_string(waiting.timeout.count() / 1000) + " s in the middle of a hand-over",
                ETIMEDOUT);
  }
}

}  // namespace

Inbox::Inbox(InboxPlaces places)
    : places_(std::move(places)), memory_(SharedMemory::create(size_of(places_))) {
  const std::size_t count = places_.streams.size();
  Head& head = head_of(memory_);
  head.receiver = NodeProcess::own();
  head.streams = count;
  std::uint64_t* const offsets = places_of(memory_, count);
  std::uint64_t first = 0;
  for (std::size_t s = 0; s < count; ++s) {
    const InboxPlaces::Stream& stream = places_.streams[s];
    Stream& shared = streams_of(memory_, count)[s];
    shared.rank = stream.rank;
    shared.first = first;
    shared.messages = stream.messages.size();
    for (const std::uint64_t offset : stream.messages) offsets[first++] = offset;
  }
  first_ = memory_.data() + bytes_before(count, first);
}

void Inbox::open(std::uint32_t layer) {
  Head& head = head_of(memory_);
  head.open.store(told(turn_, places_.layers.size(), layer), std::memory_order_release);
  head.opened.happened();
}

const std::byte* Inbox::message(std::size_t stream, std::size_t number) const {
  const std::uint64_t offset = places_.streams[stream].messages[number];
  return offset == InboxPlaces::nowhere ? nullptr : first_ + offset;
}

void Inbox::wait_for(std::size_t stream, std::size_t number, const InboxWaiting& waiting) {
  const InboxPlaces::Stream& of = places_.streams[stream];
  Stream& shared = streams_of(memory_, places_.streams.size())[stream];
  wait_until(shared.sent, told(turn_, of.messages.size(), number), head_of(memory_).arrived, of.rank, waiting,
             [&] { return shared.sender.is_gone(); });
}

Outbox::Outbox(int receiver, const std::string& path, std::size_t size, int rank,
               const std::vector<Message>& messages, std::size_t layers)
    : receiver_(receiver), layers_(layers), memory_(SharedMemory::open(path, size)) {
  const auto refuse = [&] {
    throw Error(ErrorKind::malformed, "the inbox of rank " + std::to_string(receiver) +
                                          " is none for what this rank sends; do all ranks run the same "
                                          "version of shardwright?");
  };
  if (size < bytes_before(0, 0)) refuse();
  const std::uint64_t count = head_of(memory_).streams;
  if (count > size / sizeof(Stream) || bytes_before(count, 0) > size) refuse();
  const std::span<Stream> streams = streams_of(memory_, count);
  std::uint64_t all = 0;
  for (const Stream& stream : streams) {
    if (stream.messages > size) refuse();
    all += stream.messages;
  }
  while (stream_ < count && streams[stream_].rank != rank) ++stream_;
  if (stream_ == count || all > size / sizeof(std::uint64_t) || bytes_before(count, all) > size) refuse();
  Stream& mine = streams[stream_];
  const std::uint64_t first = mine.first;
  if (mine.messages != messages.size() || first > all || all - first < messages.size()) refuse();
  const std::size_t before = bytes_before(count, all);
  for (std::size_t m = 0; m < messages.size(); ++m) {
    const std::uint64_t offset = places_of(memory_, count)[first + m];
    const std::size_t bytes = size_with_footer(messages[m]);
    const bool has_place = offset != InboxPlaces::nowhere;
    if (has_place &&
        (offset % alignment_in_message != 0 || offset > size - before || size - before - offset < bytes))
      refuse();
    messages_.push_back(has_place ? memory_.data() + before + offset : nullptr);
  }
  mine.sender.join();
}

std::byte* Outbox::message(std::size_t number) const { return messages_[number]; }

bool Outbox::wait_for(std::uint32_t layer, const InboxWaiting& waiting) {
  Head& head = head_of(memory_);
  return wait_until(head.open, told(turn_, layers_, layer), head.opened, receiver_, waiting,
                    [&] { return head.receiver.is_gone(); });
}

void Outbox::send(std::size_t number) {
  Stream& mine = streams_of(memory_, stream_ + 1)[stream_];
  mine.sent.store(told(turn_, messages_.size(), number), std::memory_order_release);
  head_of(memory_).arrived.happened();
}

}  // namespace shardwright
