#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "planner/job.h"
#include "storage/handover/message_memory.h"
#include "storage/handover/message_receiver.h"
#include "storage/handover/message_sender.h"
#include "storage/handover/refit.h"

namespace shardwright {

/// Ends a hand-over on all ranks where one is interrupted, or gets no memory for its messages. What two ranks
/// have begun with each other has to be completed, since a transport takes nothing back: each rank puts on
/// the board how many messages it has begun with each other one, and then begins, as void ones, those that
/// only the other side has begun. A rank that has all of its messages need not take part: what it has begun,
/// the others have.
class EarlyEnd {
 public:
  EarlyEnd(const RefitWork& work, const Transport& transport, MessageSender& sender,
           MessageReceiver& receiver, OwnMessages& own, FirstFailure& failure);

  /// Looks whether this rank or another one ends it, and does what is left to be done then; some times a
  /// second, by the thread that waits for sender and receiver.
  void look();

  /// False where this rank is to end it, or has, and others may yet tell what they have begun with it. They
  /// may do so when all that this rank has begun is done.
  bool has_heard_from_all() const {
    return has_ended_ ? incomplete_.empty() : !ends_here_ && !failure_.is_end();
  }

  bool has_ended() const { return has_ended_; }

  /// After sender and receiver have ended: waits for what look() has begun.
  void finish();

 private:
  struct Void {
    MessageBytes bytes;
    std::uint64_t begun = 0;
  };

  void end();
  void complete_with(int rank, const std::string& told);
  void begin_void(int rank, std::size_t number, const Message& message, bool is_sent);
  std::string key_of(int rank) const { return work_.name + "/begun/" + std::to_string(rank); }

  const RefitWork& work_;
  const Transport& transport_;
  MessageSender& sender_;
  MessageReceiver& receiver_;
  OwnMessages& own_;
  FirstFailure& failure_;
  std::size_t looks_ = 0;
  bool ends_here_ = false;           ///< this rank has been interrupted
  bool has_ended_ = false;           ///< on this rank: it begins nothing more, and has told what it has begun
  std::map<int, std::size_t> sent_;  ///< messages begun, by rank
  std::map<int, std::size_t> received_;  ///< likewise
  std::set<int> incomplete_;             ///< ranks that have yet to tell what they have begun
  std::vector<Void> voids_;
};

}  // namespace shardwright
