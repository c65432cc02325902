#include "storage/handover/message_receiver.h"

#include <cstring>
#include <exception>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/handover/boxes_in_messages.h"
#include "storage/threads.h"

namespace shardwright {

MessageReceiver::MessageReceiver(const RefitWork& work, const Transport& transport, OwnMessages& own,
                                 MessageMemory& memory, FirstFailure& failure)
    : work_(work), transport_(transport), own_(own), memory_(memory), failure_(failure) {
  std::set<std::uint32_t> layers;
  for (const HandedList& list : work.plan.receives) {
    streams_.push_back(
        {&list, messages_of(list.boxes, work.catalog, work.layers, work.plan.message_bytes), 0, false});
    for (const Message& message : streams_.back().messages) layers.insert(message.layer);
  }
  layers_.assign(layers.begin(), layers.end());
}

void MessageReceiver::run() {
  std::size_t next = 0;  // to be begun
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    // Of the layers behind this one as many as there is room for.
    while (next < layers_.size() && (next <= l || has_room_for(layers_[next], layers_[l])))
      begin(layers_[next++]);
    Layer layer = std::move(coming_.front());
    coming_.pop_front();
    const bool is_complete = finish(layer);
    const bool is_taken = is_complete && !failed_;
    try {
      if (is_taken) place(layer);
    } catch (...) {  // as where memory for its threads is refused: of this layer some may be new
      failure_.note_end(std::current_exception());
      failed_ = true;
    }
    failed_ = failed_ || !is_complete;
    (is_taken ? committed : left).push_back(work_.layers.names[layers_[l]]);
    posted_ -= layer.bytes;
    for (Coming& coming : layer.messages)
      if (coming.bytes) memory_.give_back(std::move(coming.bytes), size_with_footer(coming.message));
  }
}

bool MessageReceiver::has_room_for(std::uint32_t number, std::uint32_t placed) const {
  if (work_.node != nullptr && !work_.node->is_free(number, placed)) return false;
  const std::size_t inbox = work_.node == nullptr ? 0 : work_.node->bytes();
  const std::size_t beside = bytes_beside_inbox(number);
  return beside == 0 || inbox + posted_ + beside <= work_.staging_bytes / 2;
}

bool MessageReceiver::is_in_inbox(const Stream& stream, std::size_t number) const {
  return work_.node != nullptr && work_.node->message_from(stream.list->rank, number) != nullptr;
}

std::size_t MessageReceiver::bytes_beside_inbox(std::uint32_t number) const {
  std::size_t bytes = 0;
  for (const Stream& stream : streams_) {
    for (std::size_t m = stream.next; m < stream.messages.size() && stream.messages[m].layer == number; ++m)
      if (!is_in_inbox(stream, m)) bytes += size_with_footer(stream.messages[m]);
  }
  return bytes;
}

void MessageReceiver::begin(std::uint32_t number) {
  Layer& layer = coming_.emplace_back();
  for (std::size_t s = 0; s < streams_.size(); ++s) {
    Stream& stream = streams_[s];
    for (; stream.next < stream.messages.size() && stream.messages[stream.next].layer == number;
         ++stream.next) {
      Coming& coming = layer.messages.emplace_back();
      coming.stream = s;
      coming.number = stream.next;
      coming.message = stream.messages[stream.next];
      if (!is_in_inbox(stream, stream.next)) layer.bytes += size_with_footer(coming.message);
      if (stream.list->rank != work_.rank) begin(coming);  // else the sender has made it, and counted it
    }
  }
  posted_ += layer.bytes;
  if (work_.node != nullptr) work_.node->open(number);
}

void MessageReceiver::begin(Coming& coming) {
  Stream& stream = streams_[coming.stream];
  const int rank = stream.list->rank;
  const std::size_t size = size_with_footer(coming.message);
  if (work_.node != nullptr) coming.data = work_.node->message_from(rank, coming.number);
  if (coming.data != nullptr) {
    coming.is_lost = stream.is_gone || !begun.count(rank, [] {});
    return;
  }
  try {
    coming.bytes = memory_.take(size);
    coming.data = coming.bytes.get();
  } catch (...) {
    failure_.note_end(std::current_exception());
    stream.is_gone = coming.is_lost = true;
    return;
  }
  try {
    coming.is_lost = stream.is_gone || !begun.count(rank, [&] {
      coming.begun = transport_.receive(rank, coming.bytes.get(), size);
    });
  } catch (...) {
    failure_.note(std::current_exception());
    stream.is_gone = coming.is_lost = true;
  }
}

void MessageReceiver::wait_for(const Coming& coming) {
  const std::size_t size = size_with_footer(coming.message);
  if (coming.bytes) {
    transport_.wait(coming.begun);
  } else {
    work_.node->wait_for(streams_[coming.stream].list->rank, coming.number);
    bytes_in_memory += size;
  }
  bytes_received += size;
}

bool MessageReceiver::finish(Layer& layer) {
  bool is_complete = true;
  for (Coming& coming : layer.messages) {
    Stream& stream = streams_[coming.stream];
    const std::size_t size = size_with_footer(coming.message);
    if (stream.list->rank == work_.rank) {
      coming.bytes = own_.take(size);
      coming.data = coming.bytes.get();
      coming.is_lost = !coming.bytes;
    } else if (stream.is_gone && !coming.bytes) {
      coming.is_lost = true;  // in the inbox nothing is under way that would have to end
    } else if (!coming.is_lost) {
      try {
        wait_for(coming);
      } catch (...) {
        failure_.note(std::current_exception());
        stream.is_gone = coming.is_lost = true;
      }
    }
    std::uint64_t word = is_void;
    if (!coming.is_lost) std::memcpy(&word, coming.data + coming.message.bytes, sizeof(word));
    is_complete = is_complete && word == is_whole;
    if (!coming.is_lost && word != is_whole && word != is_void) {
      failure_.note(std::make_exception_ptr(Error(
          ErrorKind::malformed, "rank " + std::to_string(stream.list->rank) +
                                    " has sent a message that does not end as one; do all ranks run the same "
                                    "version of shardwright?")));
    }
  }
  return is_complete;
}

void MessageReceiver::place(const Layer& layer) {
  for_each_index(layer.messages.size(), work_.threads, [&](std::size_t m) {
    const Coming& coming = layer.messages[m];
    const HandedList& list = *streams_[coming.stream].list;
    std::size_t offset = 0;
    for (std::size_t b = coming.message.first; b < coming.message.first + coming.message.count; ++b) {
      const HandedBox& handed = list.boxes[b];
      const Transfer& transfer = work_.transfers[handed.need];
      place_from_message(handed.part, coming.data + offset, transfer, work_.catalog,
                         work_.tensors[transfer.destination]);
      offset += padded(bytes_of_part(handed.part, work_.catalog));
    }
  });
}

}  // namespace shardwright
