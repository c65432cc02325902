#include "storage/handover/refit.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "storage/boxes/placing.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

struct Bytes {
  std::unique_ptr<std::byte[]> data;
  std::size_t room = 0;

  std::byte* get() const { return data.get(); }
  explicit operator bool() const { return data != nullptr; }
};

/// Behind the boxes of each message: whether they are what they should be.
constexpr std::size_t footer_bytes = alignment_in_message;
constexpr std::uint64_t is_whole = 0x57484f4c45;
constexpr std::uint64_t is_void = 0x564f4944;

std::size_t padded(std::size_t bytes) {
  return (bytes + alignment_in_message - 1) / alignment_in_message * alignment_in_message;
}

/// Integers of an element's size: bytes are moved, not numbers.
DType moved_as(std::int64_t element_bytes) {
  switch (element_bytes) {
    case 2:
      return DType::U16;
    case 4:
      return DType::U32;
    case 8:
      return DType::U64;
    default:
      return DType::U8;
  }
}

/// Memory of both directions, all that is on the way, and some that waits to be used again: fresh pages cost
/// more than what is copied into them.
class Staging {
 public:
  explicit Staging(std::size_t most_kept) : most_kept_(most_kept) {}

  Bytes take(std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    held_ += bytes;
    most_ = std::max(most_, held_ + kept_);
    const auto found = free_.lower_bound(bytes);
    if (found == free_.end() || found->first > 2 * bytes) {
      // Whatever is kept is too small, or too large to be spent on so little.
      while (kept_ > 0 && held_ + kept_ > most_kept_) drop_largest();
      return {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
    }
    kept_ -= found->first;
    Bytes memory = std::move(found->second);
    free_.erase(found);
    return memory;
  }

  /// `bytes` as they were taken.
  void give_back(Bytes memory, std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    held_ -= bytes;
    if (!memory) return;
    kept_ += memory.room;
    const std::size_t room = memory.room;
    free_.emplace(room, std::move(memory));
    while (kept_ > 0 && held_ + kept_ > most_kept_) drop_largest();
  }

  std::size_t most() const { return most_; }

 private:
  void drop_largest() {
    const auto last = std::prev(free_.end());
    kept_ -= last->first;
    free_.erase(last);
  }

  const std::size_t most_kept_;
  std::mutex mutex_;
  std::multimap<std::size_t, Bytes> free_;
  std::size_t held_ = 0;
  std::size_t kept_ = 0;
  std::size_t most_ = 0;
};

/// What a rank hands to itself.
class Mailbox {
 public:
  void put(Bytes message, std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    messages_.push_back(std::move(message));
    waiting_ += bytes;
    changed_.notify_all();
  }

  /// Null once nothing more comes.
  Bytes take(std::size_t bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !messages_.empty() || is_closed_; });
    if (messages_.empty()) return {};
    Bytes message = std::move(messages_.front());
    messages_.pop_front();
    waiting_ -= bytes;
    changed_.notify_all();
    return message;
  }

  /// Waits until less than so many bytes are left in it. False if nobody takes any more.
  bool wait_for_less(std::size_t bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ < std::max<std::size_t>(bytes, 1) || is_closed_; });
    return !is_closed_;
  }

  /// Nobody puts, or nobody takes any more.
  void close() {
    const std::scoped_lock lock(mutex_);
    is_closed_ = true;
    changed_.notify_all();
  }

  std::size_t waiting() {
    const std::scoped_lock lock(mutex_);
    return waiting_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Bytes> messages_;
  std::size_t waiting_ = 0;
  bool is_closed_ = false;
};

/// The first thing that went wrong.
class Failure {
 public:
  void note(std::exception_ptr what) {
    const std::scoped_lock lock(mutex_);
    if (!first_) first_ = std::move(what);
  }
  std::exception_ptr first() {
    const std::scoped_lock lock(mutex_);
    return first_;
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

/// Gathers boxes into messages, and sends each once it is full.
class Sender {
 public:
  Sender(const RefitWork& work, const Transport& transport, Mailbox& own, Staging& staging, Failure& failure)
      : work_(work), transport_(transport), own_(own), staging_(staging), failure_(failure) {
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

  void run() {
    const auto layers = static_cast<std::uint32_t>(work_.layers.names.size());
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      bool is_lost = failed_;
      if (!failed_ && work_.encode) {
        try {
          work_.encode(layer, [&](const GivenBytes& given) { take(given); });
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

  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_kept = 0;
  std::uint64_t messages_sent = 0;

 private:
  struct Open {
    Message planned;
    Bytes bytes;
    std::size_t missing = 0;
  };
  struct Stream {
    const HandedList* list = nullptr;
    std::vector<Open> messages;
    std::size_t next = 0;  ///< to be sent
    bool is_gone = false;  ///< the other rank
  };
  struct Place {
    std::uint32_t stream;
    std::uint32_t message;
    const ExportedBox* part;
    std::size_t offset;  ///< in the message
  };
  struct OnTheWay {
    std::uint64_t begun;
    Bytes bytes;
    std::size_t size;
    std::size_t stream;
  };

  void take(const GivenBytes& given) {
    for (const Place& place : of_tensor_[given.part.tensor]) {
      Stream& stream = streams_[place.stream];
      Open& open = stream.messages[place.message];
      const std::size_t copied = copy(given, place, open);
      if (copied == 0) continue;
      const std::scoped_lock lock(mutex_);
      open.missing -= std::min(copied, open.missing);
      if (open.missing == 0) send_what_is_full(place.stream);
    }
  }

  std::byte* room_of(Open& open) {
    const std::scoped_lock lock(mutex_);
    if (!open.bytes) {
      const std::size_t size = open.planned.bytes + footer_bytes;
      while (held_ + own_.waiting() + size > work_.staging_bytes / 2) {
        if (oldest_is_done()) continue;
        const std::size_t waiting = own_.waiting();
        if (waiting == 0) break;  // the rest is not full yet
        if (!own_.wait_for_less(waiting)) break;
      }
      open.bytes = staging_.take(size);
      held_ += size;
    }
    return open.bytes.get();
  }

  /// Copies what is given of a place. Returns the bytes of it.
  std::size_t copy(const GivenBytes& given, const Place& place, Open& open) {
    const ExportedBox& part = *place.part;
    const SourceTensor& tensor = work_.catalog.tensors[part.tensor];
    const std::int64_t element_bytes = unit_bytes(tensor.dtype);
    std::size_t copied = 0;
    const Shape packed = contiguous_strides(part.box.size);
    const auto copy_common = [&](const Box& common, const Shape& strides, std::int64_t first) {
      std::vector<CopiedDimension> dimensions;
      std::int64_t to = 0;
      for (std::size_t d = 0; d < common.size.size(); ++d) {
        dimensions.push_back({common.size[d], strides[d], packed[d]});
        to += (common.offset[d] - part.box.offset[d]) * packed[d];
      }
      copy_box(dimensions, moved_as(element_bytes), moved_as(element_bytes),
               given.bytes + first * element_bytes,
               room_of(open) + place.offset + static_cast<std::size_t>(to * element_bytes));
      copied += static_cast<std::size_t>(volume(common.size) * element_bytes);
    };
    if (given.part.view == part.view) {
      const Box common = intersection(given.part.box, part.box);
      if (is_empty(common)) return 0;
      std::int64_t first = 0;
      for (std::size_t d = 0; d < common.size.size(); ++d)
        first += (common.offset[d] - given.part.box.offset[d]) * given.strides[d];
      copy_common(common, given.strides, first);
      return copied;
    }
    // The engine sees it in a view of the plain box that is given: see handed_boxes().
    const std::optional<View> view = view_with(part.view, in_units(tensor.dtype, tensor.shape));
    if (!view || !given.part.view.empty())
      throw Error(ErrorKind::mismatch,
                  stored_name(tensor) + ": has been encoded in another view than planned");
    for (const Box& within : boxes_in_view(*view, given.part.box)) {
      const Box common = intersection(within, part.box);
      if (is_empty(common)) continue;
      const Lattice lattice = lattice_of(*view, common);
      Shape strides;
      for (std::size_t i = 0; i < lattice.axes.size(); ++i)
        strides.push_back(lattice.axes[i] < 0
                              ? 0
                              : lattice.steps[i] * given.strides[static_cast<std::size_t>(lattice.axes[i])]);
      std::int64_t first = 0;
      for (std::size_t d = 0; d < lattice.first.size(); ++d)
        first += (lattice.first[d] - given.part.box.offset[d]) * given.strides[d];
      copy_common(common, strides, first);
    }
    return copied;
  }

  /// Sends all messages of a layer that have not gone yet, as void if the layer is lost, or if it was not
  /// given in full.
  void finish(std::uint32_t layer, bool is_lost) {
    for (std::size_t s = 0; s < streams_.size(); ++s) {
      Stream& stream = streams_[s];
      while (stream.next < stream.messages.size() && stream.messages[stream.next].planned.layer <= layer) {
        Open& open = stream.messages[stream.next];
        if (!is_lost && !failed_) {
          failure_.note(std::make_exception_ptr(
              Error(ErrorKind::mismatch, work_.layers.names[layer] +
                                             ": this rank has not encoded all that it is to "
                                             "send of it; do all ranks run the same version "
                                             "of shardwright?")));
          failed_ = true;
        }
        room_of(open);
        const std::scoped_lock lock(mutex_);
        send(s, is_void);
      }
    }
  }

  /// REQUIRES: the mutex is held, as for the next.
  void send_what_is_full(std::size_t s) {
    Stream& stream = streams_[s];
    while (stream.next < stream.messages.size() && stream.messages[stream.next].missing == 0 &&
           stream.messages[stream.next].bytes)
      send(s, is_whole);
  }

  void send(std::size_t s, std::uint64_t word) {
    Stream& stream = streams_[s];
    Open& open = stream.messages[stream.next++];
    const std::size_t size = open.planned.bytes + footer_bytes;
    std::memcpy(open.bytes.get() + open.planned.bytes, &word, sizeof(word));
    if (stream.list->rank == work_.rank) {
      held_ -= size;
      bytes_kept += size;
      own_.put(std::move(open.bytes), size);
      return;
    }
    if (stream.is_gone) return drop(open.bytes, size);
    try {
      const std::uint64_t begun = transport_.send(stream.list->rank, open.bytes.get(), size);
      bytes_sent += size;
      ++messages_sent;
      on_the_way_.push_back({begun, std::move(open.bytes), size, s});
    } catch (...) {
      lose(s);
      drop(open.bytes, size);
    }
  }

  void drop(Bytes& bytes, std::size_t size) {
    held_ -= size;
    staging_.give_back(std::move(bytes), size);
  }

  void lose(std::size_t s) {
    failure_.note(std::current_exception());
    streams_[s].is_gone = true;
  }

  /// REQUIRES: the mutex is held. False if nothing is on the way.
  bool oldest_is_done() {
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

  bool wait_for_oldest() {
    const std::scoped_lock lock(mutex_);
    return oldest_is_done();
  }

  const RefitWork& work_;
  const Transport& transport_;
  Mailbox& own_;
  Staging& staging_;
  Failure& failure_;
  std::vector<Stream> streams_;
  std::vector<std::vector<Place>> of_tensor_;
  std::mutex mutex_;
  std::deque<OnTheWay> on_the_way_;
  std::size_t held_ = 0;
  bool failed_ = false;
};

/// Receives layer by layer, and puts each in its place.
class Receiver {
 public:
  Receiver(const RefitWork& work, const Transport& transport, Mailbox& own, Staging& staging,
           Failure& failure)
      : work_(work), transport_(transport), own_(own), staging_(staging), failure_(failure) {
    for (const HandedList& list : work.plan.receives) {
      streams_.push_back(
          {&list, messages_of(list.boxes, work.catalog, work.layers, work.plan.message_bytes), 0, false});
    }
    std::set<std::uint32_t> layers;
    for (const Stream& stream : streams_) {
      for (const Message& message : stream.messages) layers.insert(message.layer);
    }
    layers_.assign(layers.begin(), layers.end());
  }

  void run() {
    std::size_t begun = 0;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      // Of the layers behind this one as many as there is room for.
      while (begun < layers_.size() &&
             (begun <= l || posted_ + bytes_of_layer(layers_[begun]) <= work_.staging_bytes / 2))
        begin(layers_[begun++]);
      Layer layer = std::move(coming_.front());
      coming_.pop_front();
      const bool is_complete = finish(layer);
      const bool is_taken = is_complete && !failed_;
      if (is_taken) place(layer);
      failed_ = failed_ || !is_complete;
      (is_taken ? committed : left).push_back(work_.layers.names[layers_[l]]);
      posted_ -= layer.bytes;
      for (Coming& coming : layer.messages)
        staging_.give_back(std::move(coming.bytes), coming.message.bytes + footer_bytes);
    }
  }

  std::vector<std::string> committed;
  std::vector<std::string> left;
  std::uint64_t bytes_received = 0;

 private:
  struct Stream {
    const HandedList* list;
    std::vector<Message> messages;
    std::size_t next;  ///< to be received
    bool is_gone;
  };
  struct Coming {
    std::size_t stream;
    Message message;
    Bytes bytes;
    std::uint64_t begun = 0;
    bool is_lost = false;
  };
  struct Layer {
    std::vector<Coming> messages;
    std::size_t bytes = 0;
  };

  std::size_t bytes_of_layer(std::uint32_t number) const {
    std::size_t bytes = 0;
    for (const Stream& stream : streams_) {
      for (std::size_t m = stream.next; m < stream.messages.size() && stream.messages[m].layer == number; ++m)
        bytes += stream.messages[m].bytes + footer_bytes;
    }
    return bytes;
  }

  void begin(std::uint32_t number) {
    Layer& layer = coming_.emplace_back();
    for (std::size_t s = 0; s < streams_.size(); ++s) {
      Stream& stream = streams_[s];
      for (; stream.next < stream.messages.size() && stream.messages[stream.next].layer == number;
           ++stream.next) {
        Coming& coming = layer.messages.emplace_back();
        coming.stream = s;
        coming.message = stream.messages[stream.next];
        const std::size_t size = coming.message.bytes + footer_bytes;
        layer.bytes += size;
        if (stream.list->rank == work_.rank) continue;  // the sender has made it, and counted it
        coming.bytes = staging_.take(size);
        coming.is_lost = stream.is_gone;
        if (stream.is_gone) continue;
        try {
          coming.begun = transport_.receive(stream.list->rank, coming.bytes.get(), size);
        } catch (...) {
          failure_.note(std::current_exception());
          stream.is_gone = coming.is_lost = true;
        }
      }
    }
    posted_ += layer.bytes;
  }

  /// Waits for all of a layer. False if some of it is void or lost.
  bool finish(Layer& layer) {
    bool is_complete = true;
    for (Coming& coming : layer.messages) {
      Stream& stream = streams_[coming.stream];
      const std::size_t size = coming.message.bytes + footer_bytes;
      if (stream.list->rank == work_.rank) {
        coming.bytes = own_.take(size);
        coming.is_lost = !coming.bytes;
      } else if (!coming.is_lost) {
        try {
          transport_.wait(coming.begun);
          bytes_received += size;
        } catch (...) {
          failure_.note(std::current_exception());
          stream.is_gone = coming.is_lost = true;
        }
      }
      std::uint64_t word = is_void;
      if (!coming.is_lost) std::memcpy(&word, coming.bytes.get() + coming.message.bytes, sizeof(word));
      is_complete = is_complete && word == is_whole;
      if (!coming.is_lost && word != is_whole && word != is_void) {
        failure_.note(std::make_exception_ptr(
            Error(ErrorKind::malformed,
                  "rank " + std::to_string(stream.list->rank) +
                      " has sent a message that does not end as one; do all ranks run the same "
                      "version of shardwright?")));
      }
    }
    return is_complete;
  }

  void place(const Layer& layer) {
    for_each_index(layer.messages.size(), work_.threads, [&](std::size_t m) {
      const Coming& coming = layer.messages[m];
      const HandedList& list = *streams_[coming.stream].list;
      std::size_t offset = 0;
      for (std::size_t b = coming.message.first; b < coming.message.first + coming.message.count; ++b) {
        place(list.boxes[b], coming.bytes.get() + offset);
        offset += padded(bytes_of_part(list.boxes[b].part, work_.catalog));
      }
    });
  }

  void place(const HandedBox& handed, const std::byte* from) const {
    const ExportedBox& part = handed.part;
    const Transfer& transfer = work_.transfers[handed.need];
    const SourceTensor& tensor = work_.catalog.tensors[part.tensor];
    const EngineMemory& memory = work_.tensors[transfer.destination];
    const std::int64_t element_bytes = unit_bytes(tensor.dtype);
    const auto step_of =
        [&](std::size_t factor) {  // elements of memory, from one index of the source to the next
          if (transfer.axes[factor] < 0) return std::int64_t{0};
          return (transfer.steps.empty() ? 1 : transfer.steps[factor]) *
                 memory.strides[static_cast<std::size_t>(transfer.axes[factor])];
        };
    Shape strides;
    std::int64_t first = elements_to(transfer.destination_offset, memory.strides);
    if (part.view == transfer.source_view) {
      for (std::size_t i = 0; i < part.box.size.size(); ++i) {
        strides.push_back(step_of(i));
        first += (part.box.offset[i] - transfer.source_box.offset[i]) * step_of(i);
      }
    } else {  // the trainer sees it in a view
      const std::optional<View> view = view_with(part.view, in_units(tensor.dtype, tensor.shape));
      const Lattice lattice = lattice_of(view.value(), part.box);
      for (std::size_t i = 0; i < lattice.axes.size(); ++i)
        strides.push_back(
            lattice.axes[i] < 0 ? 0 : lattice.steps[i] * step_of(static_cast<std::size_t>(lattice.axes[i])));
      for (std::size_t d = 0; d < lattice.first.size(); ++d)
        first += (lattice.first[d] - transfer.source_box.offset[d]) * step_of(d);
    }
    const Shape packed = contiguous_strides(part.box.size);
    std::vector<CopiedDimension> dimensions;
    for (std::size_t i = 0; i < strides.size(); ++i)
      dimensions.push_back({part.box.size[i], packed[i], strides[i]});
    copy_box(dimensions, moved_as(element_bytes), moved_as(element_bytes), from,
             memory.data + first * element_bytes);
  }

  const RefitWork& work_;
  const Transport& transport_;
  Mailbox& own_;
  Staging& staging_;
  Failure& failure_;
  std::vector<Stream> streams_;
  std::vector<std::uint32_t> layers_;
  std::deque<Layer> coming_;
  std::size_t posted_ = 0;
  bool failed_ = false;
};

}  // namespace

RefitOutcome run_refit(const RefitWork& work, const Transport& transport) {
  const auto begin = std::chrono::steady_clock::now();
  Mailbox own;
  Staging staging(work.staging_bytes);
  Failure failure;
  Sender sender(work, transport, own, staging, failure);
  Receiver receiver(work, transport, own, staging, failure);
  std::thread receiving([&] {
    try {
      receiver.run();
    } catch (...) {
      failure.note(std::current_exception());
      own.close();
    }
  });
  try {
    sender.run();
  } catch (...) {
    failure.note(std::current_exception());
  }
  own.close();
  receiving.join();
  RefitOutcome outcome;
  outcome.report.bytes_sent = sender.bytes_sent;
  outcome.report.bytes_kept = sender.bytes_kept;
  outcome.report.messages = sender.messages_sent;
  outcome.report.bytes_received = receiver.bytes_received;
  outcome.report.peak_staging_bytes = staging.most();
  outcome.report.layers = receiver.committed.size() + receiver.left.size();
  outcome.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  outcome.committed = std::move(receiver.committed);
  outcome.left = std::move(receiver.left);
  outcome.failure = failure.first();
  return outcome;
}

}  // namespace shardwright
