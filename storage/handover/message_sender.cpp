#include "storage/handover/message_sender.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

/// Ends encoding: nothing more is to be sent.
struct Stopped {};

}  // namespace

MessageSender::MessageSender(const RefitWork& work, const Transport& transport, OwnMessages& own,
                             MessageMemory& memory, FirstFailure& failure)
    : work_(work), transport_(transport), own_(own), memory_(memory), failure_(failure) {
  of_tensor_.resize(work.catalog.tensors.size());
  for (const HandedList& list : work.plan.sends) {
    Stream& stream = streams_.emplace_back();
    stream.list = &list;
    const std::vector<Message> messages =
        messages_of(list.boxes, work.catalog, work.layers, work.plan.message_bytes);
    stream.messages = std::vector<Open>(messages.size());
    for (std::size_t m = 0; m < messages.size(); ++m) {
      Open& open = stream.messages[m];
      open.planned = messages[m];
      std::size_t offset = 0;
      for (std::size_t b = messages[m].first; b < messages[m].first + messages[m].count; ++b) {
        const std::size_t bytes = bytes_of_part(list.boxes[b].part, work.catalog);
        of_tensor_[list.boxes[b].part.tensor].push_back({static_cast<std::uint32_t>(streams_.size() - 1),
                                                         static_cast<std::uint32_t>(m), &list.boxes[b].part,
                                                         offset});
        offset += padded(bytes);
        open.missing += bytes;
      }
    }
  }
}

void MessageSender::run() {
  const auto layers = static_cast<std::uint32_t>(work_.layers.names.size());
  for (std::uint32_t layer = 0; layer < layers && !begun.is_stopped(); ++layer) {
    bool is_lost = failed_;
    if (!failed_ && work_.encode) {
      try {
        work_.encode(layer, [&](const GivenBytes& given) { take(given); });
      } catch (const Stopped&) {
        break;
      } catch (...) {
        failure_.note(std::current_exception());
        is_lost = failed_ = true;
      }
    }
    finish(layer, is_lost);
  }
  while (wait_for_oldest()) {
  }
  own_.wait_for_less(1);
}

void MessageSender::take(const GivenBytes& given) {
  if (begun.is_stopped()) throw Stopped();
  for (const Place& place : of_tensor_[given.part.tensor]) {
    const std::vector<CommonBox> common = common_boxes(given, *place.part, work_.catalog);
    if (common.empty()) continue;
    Open& open = streams_[place.stream].messages[place.message];
    std::byte* const room = room_of(place.stream, place.message);
    std::size_t copied = 0;
    for (const CommonBox& box : common) {
      if (room != nullptr) copy_into_message(given, box, *place.part, work_.catalog, room + place.offset);
      copied += bytes_of_part({place.part->tensor, {}, box.box}, work_.catalog);
    }
    const std::scoped_lock lock(mutex_);
    open.missing -= std::min(copied, open.missing);
    if (open.missing == 0) send_what_is_full(place.stream);
  }
}

std::byte* MessageSender::room_of(std::size_t s, std::size_t m) {
  Stream& stream = streams_[s];
  Open& open = stream.messages[m];
  std::byte* const on_node = work_.node == nullptr ? nullptr : work_.node->message_to(stream.list->rank, m);
  if (on_node != nullptr) return room_on_node(s, m, on_node);
  const std::scoped_lock lock(mutex_);
  if (open.data == nullptr) {
    const std::size_t size = size_with_footer(open.planned);
    while (held_ + own_.waiting() + size > work_.staging_bytes / 2) {
      if (oldest_is_done()) continue;
      const std::size_t waiting = own_.waiting();
      if (waiting == 0) break;  // the rest is not full yet
      if (!own_.wait_for_less(waiting)) break;
    }
    open.bytes = memory_.take(size);
    open.data = open.bytes.get();
    held_ += size;
  }
  return open.data;
}

std::byte* MessageSender::room_on_node(std::size_t s, std::size_t m, std::byte* room) {
  Stream& stream = streams_[s];
  Open& open = stream.messages[m];
  {
    const std::scoped_lock lock(mutex_);
    if (open.data != nullptr || stream.is_gone) return open.data;
  }
  try {
    if (!work_.node->wait_for_room(stream.list->rank, open.planned.layer, [&] { return begun.is_stopped(); }))
      throw Stopped();
  } catch (const Stopped&) {
    throw;
  } catch (...) {
    const std::scoped_lock lock(mutex_);
    lose(s);
    return nullptr;
  }
  const std::scoped_lock lock(mutex_);
  return open.data = room;
}

void MessageSender::finish(std::uint32_t layer, bool is_lost) {
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    Stream& stream = streams_[s];
    while (stream.next < stream.messages.size() && stream.messages[stream.next].planned.layer <= layer) {
      if (!is_lost && !failed_ && !begun.is_stopped()) {
        failure_.note(std::make_exception_ptr(Error(
            ErrorKind::mismatch, work_.layers.names[layer] + ": this rank has not encoded all that it is to "
                                                             "send of it; do all ranks run the same version "
                                                             "of shardwright?")));
        failed_ = true;
      }
      try {
        room_of(s, stream.next);
      } catch (const Stopped&) {
        return;
      } catch (...) {  // no memory even for a void message: the others are told otherwise
        failure_.note_end(std::current_exception());
        failed_ = true;
        return;
      }
      const std::scoped_lock lock(mutex_);
      send(s, is_void);
    }
  }
}

void MessageSender::send_what_is_full(std::size_t s) {
  Stream& stream = streams_[s];
  while (stream.next < stream.messages.size() && stream.messages[stream.next].missing == 0 &&
         (stream.is_gone || stream.messages[stream.next].data != nullptr))
    send(s, is_whole);
}

void MessageSender::send(std::size_t s, std::uint64_t word) {
  Stream& stream = streams_[s];
  const std::size_t number = stream.next++;
  Open& open = stream.messages[number];
  const std::size_t size = size_with_footer(open.planned);
  if (open.data != nullptr) std::memcpy(open.data + open.planned.bytes, &word, sizeof(word));
  if (stream.list->rank == work_.rank) {
    held_ -= size;
    bytes_kept += size;
    own_.put(std::move(open.bytes), size);
    return;
  }
  const int rank = stream.list->rank;
  if (open.data != nullptr && !open.bytes) return send_on_node(rank, number, size);
  if (stream.is_gone) return drop(open.bytes, size);
  try {
    std::uint64_t sending = 0;
    if (!begun.count(rank, [&] { sending = transport_.send(rank, open.bytes.get(), size); }))
      return drop(open.bytes, size);
    bytes_sent += size;
    ++messages_sent;
    on_the_way_.push_back({sending, std::move(open.bytes), size, s});
  } catch (...) {
    lose(s);
    drop(open.bytes, size);
  }
}

void MessageSender::send_on_node(int rank, std::size_t number, std::size_t size) {
  if (!begun.count(rank, [&] { work_.node->send(rank, number); })) return;
  bytes_sent += size;
  bytes_in_memory += size;
  ++messages_sent;
}

void MessageSender::drop(MessageBytes& bytes, std::size_t size) {
  if (!bytes) return;
  held_ -= size;
  memory_.give_back(std::move(bytes), size);
}

void MessageSender::lose(std::size_t s) {
  failure_.note(std::current_exception());
  streams_[s].is_gone = true;
}

bool MessageSender::oldest_is_done() {
  if (on_the_way_.empty()) return false;
  OnTheWay oldest = std::move(on_the_way_.front());
  on_the_way_.pop_front();
  try {
    transport_.wait(oldest.begun);
  } catch (...) {
    lose(oldest.stream);
  }
  drop(oldest.bytes, oldest.size);
  return true;
}

bool MessageSender::wait_for_oldest() {
  const std::scoped_lock lock(mutex_);
  return oldest_is_done();
}

}  // namespace shardwright
