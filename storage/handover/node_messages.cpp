#include "storage/handover/node_messages.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/wire/packed_texts.h"
#include "storage/handover/refit_rounds.h"

namespace shardwright {
namespace {

/// By rank, whether it and this one have the same node.
std::vector<bool> sharing_with(int rank, const std::vector<std::string>& nodes) {
  const std::string& mine = nodes[static_cast<std::size_t>(rank)];
  std::vector<bool> shares;
  for (const std::string& node : nodes) shares.push_back(!node.empty() && node == mine);
  shares[static_cast<std::size_t>(rank)] = false;  // what it hands to itself is not sent
  return shares;
}

bool any_shares(const std::vector<std::string>& nodes) {
  std::set<std::string> seen;
  return std::any_of(nodes.begin(), nodes.end(),
                     [&](const std::string& node) { return !node.empty() && !seen.insert(node).second; });
}

/// What a rank tells of its inbox.
struct ToldInbox {
  std::string path;  ///< empty: it has none
  std::string size;
  std::string refused;

  std::string pack() const { return pack_texts({path, size, refused}); }

  static ToldInbox unpack(const std::string& bytes) {
    std::vector<std::string> texts = unpack_texts(bytes);
    if (texts.size() != 3)
      throw Error(ErrorKind::malformed,
                  "what a rank has told of its inbox is cut short; do all ranks run the same version of "
                  "shardwright?");
    return {std::move(texts[0]), std::move(texts[1]), std::move(texts[2])};
  }
};

std::size_t number_in(const std::string& text) {
  std::size_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);  // 0 of what is none: no inbox has that
  return number;
}

/// The first of what ranks were refused; empty: nothing.
std::string first_refusal(const std::vector<std::string>& refusals) {
  for (std::size_t rank = 0; rank < refusals.size(); ++rank)
    if (!refusals[rank].empty()) return "rank " + std::to_string(rank) + ": " + refusals[rank];
  return {};
}

/// Runs it, and returns why it was refused.
template <typename Run>
std::string refused_by(const Run& run) {
  try {
    run();
  } catch (const std::exception& refused) {  // as where there is no memory
    return refused.what();
  }
  return {};
}

}  // namespace

NodeMessages::NodeMessages(std::optional<Inbox> inbox, std::map<int, Outbox> outboxes)
    : inbox_(std::move(inbox)), outboxes_(std::move(outboxes)) {
  if (!inbox_) return;
  const std::vector<InboxPlaces::Stream>& streams = inbox_->places().streams;
  for (std::size_t s = 0; s < streams.size(); ++s) streams_[streams[s].rank] = s;
}

void NodeMessages::begin(std::chrono::milliseconds timeout) {
  timeout_ = timeout;
  if (inbox_) inbox_->begin();
  for (auto& [rank, outbox] : outboxes_) outbox.begin();
}

std::byte* NodeMessages::message_to(int rank, std::size_t number) const {
  const auto found = outboxes_.find(rank);
  return found == outboxes_.end() ? nullptr : found->second.message(number);
}

bool NodeMessages::wait_for_room(int rank, std::uint32_t layer, const std::function<bool()>& is_stopped) {
  return outboxes_.at(rank).wait_for(layer, {timeout_, is_stopped});
}

void NodeMessages::send(int rank, std::size_t number) { outboxes_.at(rank).send(number); }

const std::byte* NodeMessages::message_from(int rank, std::size_t number) const {
  const auto found = streams_.find(rank);
  return found == streams_.end() ? nullptr : inbox_->message(found->second, number);
}

bool NodeMessages::is_free(std::uint32_t layer, std::uint32_t placed) const {
  return !inbox_ || inbox_->places().is_free(layer, placed);
}

void NodeMessages::open(std::uint32_t layer) {
  if (inbox_) inbox_->open(layer);
}

void NodeMessages::wait_for(int rank, std::size_t number) {
  inbox_->wait_for(streams_.at(rank), number, {timeout_, {}});
}

JoinedNode join_node(const Job& job, const RefitPlan& plan, const Catalog& catalog,
                     const HandedLayers& layers, const std::vector<std::string>& nodes,
                     std::size_t staging_bytes) {
  if (!any_shares(nodes)) return {};
  const std::vector<bool> shares = sharing_with(job.rank, nodes);
  std::optional<Inbox> inbox;
  const std::vector<std::string> told = told_by_all(job, [&] {
    InboxPlaces places = inbox_places_in_staging(plan, catalog, layers, shares, staging_bytes);
    if (places.streams.empty()) return ToldInbox{}.pack();
    std::string refused = refused_by([&] { inbox.emplace(std::move(places)); });
    if (!inbox) return ToldInbox{{}, {}, std::move(refused)}.pack();
    return ToldInbox{inbox->path(), std::to_string(inbox->size()), {}}.pack();
  });
  std::vector<ToldInbox> inboxes;
  std::vector<std::string> refusals;
  for (const std::string& one : told) {
    inboxes.push_back(ToldInbox::unpack(one));
    refusals.push_back(inboxes.back().refused);
  }
  if (std::string refused = first_refusal(refusals); !refused.empty()) return {nullptr, std::move(refused)};
  std::map<int, Outbox> outboxes;
  refusals = told_by_all(job, [&] {
    return refused_by([&] {
      for (const HandedList& list : plan.sends) {
        if (!shares[static_cast<std::size_t>(list.rank)]) continue;
        const ToldInbox& other = inboxes[static_cast<std::size_t>(list.rank)];
        outboxes.try_emplace(list.rank, list.rank, other.path, number_in(other.size), job.rank,
                             messages_of(list.boxes, catalog, layers, plan.message_bytes),
                             layers.names.size());
      }
    });
  });
  if (std::string refused = first_refusal(refusals); !refused.empty()) return {nullptr, std::move(refused)};
  if (inbox) inbox->forget_path();
  return {std::make_shared<NodeMessages>(std::move(inbox), std::move(outboxes)), {}};
}

}  // namespace shardwright
