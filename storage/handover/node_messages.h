#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "planner/handover/refit_plan.h"
#include "planner/job.h"
#include "planner/names/catalog.h"
#include "storage/handover/inbox.h"

namespace shardwright {

/// Messages between this rank and others of its node: who sends makes them in the inbox of who gets them.
/// Kept from one hand-over to the next as long as each comes to its end. Thread-safe but for begin().
class NodeMessages {
 public:
  NodeMessages(std::optional<Inbox> inbox, std::map<int, Outbox> outboxes);

  /// A hand-over begins, on all ranks.
  void begin(std::chrono::milliseconds timeout);

  /// Where a message to a rank is made, null: it goes by the transport; see Outbox. Messages are counted in
  /// the order of the plan.
  std::byte* message_to(int rank, std::size_t number) const;
  bool wait_for_room(int rank, std::uint32_t layer, const std::function<bool()>& is_stopped);
  void send(int rank, std::size_t number);

  /// Where a message from a rank comes, null: by the transport; see Inbox.
  const std::byte* message_from(int rank, std::size_t number) const;
  bool is_free(std::uint32_t layer, std::uint32_t placed) const;
  void open(std::uint32_t layer);
  void wait_for(int rank, std::size_t number);

  /// Of this rank's inbox.
  std::size_t bytes() const { return inbox_ ? inbox_->size() : 0; }

 private:
  std::optional<Inbox> inbox_;
  std::map<int, std::size_t> streams_;  ///< of the inbox, by rank
  std::map<int, Outbox> outboxes_;
  std::chrono::milliseconds timeout_{};
};

/// What came of it. Without messages all goes by the transport; `refused` says why where ranks share a node.
struct JoinedNode {
  std::shared_ptr<NodeMessages> messages = {};
  std::string refused = {};
};

/// Has the ranks make their inboxes and open those of the others, or none of them. `nodes` are the names of
/// their nodes, empty where a rank shares memory with nobody. Collective.
JoinedNode join_node(const Job& job, const RefitPlan& plan, const Catalog& catalog,
                     const HandedLayers& layers, const std::vector<std::string>& nodes,
                     std::size_t staging_bytes);

}  // namespace shardwright
