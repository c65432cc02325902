#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "planner/handover/refit_plan.h"
#include "planner/job.h"
#include "storage/handover/message_memory.h"
#include "storage/handover/refit.h"

namespace shardwright {

/// Receives layer by layer, and puts each in its place once all of it has come.
class MessageReceiver {
 public:
  MessageReceiver(const RefitWork& work, const Transport& transport, OwnMessages& own, MessageMemory& memory,
                  FirstFailure& failure);

  void run();

  /// Messages that have been begun with other ranks; from another thread.
  BegunMessages begun;

  std::vector<std::string> committed;
  std::vector<std::string> left;
  std::uint64_t bytes_received = 0;
  std::uint64_t bytes_in_memory = 0;  ///< of those, from ranks of this node

 private:
  struct Stream {
    const HandedList* list;
    std::vector<Message> messages;
    std::size_t next;  ///< to be received
    bool is_gone;
  };
  struct Coming {
    std::size_t stream;
    std::size_t number;  ///< of those of the stream
    Message message;
    const std::byte* data = nullptr;  ///< where it comes: in this rank's inbox, or in
    MessageBytes bytes;               ///< memory of its own
    std::uint64_t begun = 0;
    bool is_lost = false;
  };
  struct Layer {
    std::vector<Coming> messages;
    std::size_t bytes = 0;  ///< but for those in the inbox
  };

  bool is_in_inbox(const Stream& stream, std::size_t number) const;
  std::size_t bytes_beside_inbox(std::uint32_t number) const;  ///< of a layer
  bool has_room_for(std::uint32_t number, std::uint32_t placed) const;
  void begin(std::uint32_t number);
  void begin(Coming& coming);

  void wait_for(const Coming& coming);

  /// Waits for all of a layer. False if some of it is void or lost.
  bool finish(Layer& layer);

  void place(const Layer& layer);

  const RefitWork& work_;
  const Transport& transport_;
  OwnMessages& own_;
  MessageMemory& memory_;
  FirstFailure& failure_;
  std::vector<Stream> streams_;
  std::vector<std::uint32_t> layers_;
  std::deque<Layer> coming_;
  std::size_t posted_ = 0;
  bool failed_ = false;
};

}  // namespace shardwright
