#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "planner/handover/refit_plan.h"
#include "planner/job.h"
#include "storage/handover/boxes_in_messages.h"
#include "storage/handover/message_memory.h"
#include "storage/handover/refit.h"

namespace shardwright {

/// Gathers boxes into messages, and sends each once it is full.
class MessageSender {
 public:
  MessageSender(const RefitWork& work, const Transport& transport, OwnMessages& own, MessageMemory& memory,
                FirstFailure& failure);

  /// Returns once all has been sent, or nothing more is to be.
  void run();

  /// Messages that have been begun with other ranks; from another thread.
  BegunMessages begun;

  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_kept = 0;
  std::uint64_t bytes_in_memory = 0;  ///< of those sent, to ranks of this node
  std::uint64_t messages_sent = 0;

 private:
  struct Open {
    Message planned;
    MessageBytes bytes;         ///< of this rank's own
    std::byte* data = nullptr;  ///< where it is made: there, or in the inbox of a rank of this node
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
    MessageBytes bytes;
    std::size_t size;
    std::size_t stream;
  };

  void take(const GivenBytes& given);

  /// Null if the other rank is gone.
  std::byte* room_of(std::size_t stream, std::size_t message);
  std::byte* room_on_node(std::size_t stream, std::size_t message, std::byte* room);

  /// Sends all messages of a layer that have not gone yet, as void if the layer is lost, or if it was not
  /// given in full.
  void finish(std::uint32_t layer, bool is_lost);

  /// REQUIRES: the mutex is held, as for the next five.
  void send_what_is_full(std::size_t stream);
  void send(std::size_t stream, std::uint64_t word);
  void send_on_node(int rank, std::size_t number, std::size_t size);
  void drop(MessageBytes& bytes, std::size_t size);
  void lose(std::size_t stream);

  /// False if nothing is on the way.
  bool oldest_is_done();

  bool wait_for_oldest();

  const RefitWork& work_;
  const Transport& transport_;
  OwnMessages& own_;
  MessageMemory& memory_;
  FirstFailure& failure_;
  std::vector<Stream> streams_;
  std::vector<std::vector<Place>> of_tensor_;
  std::mutex mutex_;
  std::deque<OnTheWay> on_the_way_;
  std::size_t held_ = 0;
  bool failed_ = false;
};

}  // namespace shardwright
