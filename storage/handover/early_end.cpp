#include "storage/handover/early_end.h"

#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

constexpr const char* ended = "/ended";

/// The board is asked at every so manieth look: all ranks share it.
constexpr std::size_t looks_between = 4;

const HandedList* list_with(const std::vector<HandedList>& lists, int rank) {
  for (const HandedList& list : lists) {
    if (list.rank == rank) return &list;
  }
  return nullptr;
}

std::size_t count_of(const std::map<int, std::size_t>& counts, int rank) {
  const auto found = counts.find(rank);
  return found == counts.end() ? 0 : found->second;
}

}  // namespace

EarlyEnd::EarlyEnd(const RefitWork& work, const Transport& transport, MessageSender& sender,
                   MessageReceiver& receiver, OwnMessages& own, FirstFailure& failure)
    : work_(work),
      transport_(transport),
      sender_(sender),
      receiver_(receiver),
      own_(own),
      failure_(failure) {}

void EarlyEnd::look() {
  if (!transport_.post || !transport_.look) return;
  try {  // an interrupt may come in any of the calls, which are then made again
    if (!has_ended_ && !ends_here_ && work_.check_for_interrupt) work_.check_for_interrupt();
    ends_here_ = ends_here_ || failure_.is_end();
    if (ends_here_ && !has_ended_) transport_.post(work_.name + ended, std::to_string(work_.rank));
    const auto is_told = [&] {
      return looks_++ % looks_between == 0 && transport_.look(work_.name + ended).has_value();
    };
    if (!has_ended_ && (ends_here_ || is_told())) end();
    for (auto rank = incomplete_.begin(); rank != incomplete_.end();) {
      const std::optional<std::string> told = transport_.look(key_of(*rank));
      if (told) complete_with(*rank, *told);
      rank = told ? incomplete_.erase(rank) : std::next(rank);
    }
  } catch (...) {
    failure_.note(std::current_exception());
    ends_here_ = true;
  }
}

void EarlyEnd::finish() {
  for (const Void& one : voids_) {
    try {
      transport_.wait(one.begun);
    } catch (...) {
      failure_.note(std::current_exception());
    }
  }
}

void EarlyEnd::end() {
  sent_ = sender_.begun.stop();
  received_ = receiver_.begun.stop();
  own_.close();
  std::set<int> others;
  std::ostringstream text;
  for (const std::vector<HandedList>* lists : {&work_.plan.sends, &work_.plan.receives}) {
    const bool is_sent = lists == &work_.plan.sends;
    for (const HandedList& list : *lists) {
      if (list.rank == work_.rank) continue;
      others.insert(list.rank);
      const std::size_t all =
          messages_of(list.boxes, work_.catalog, work_.layers, work_.plan.message_bytes).size();
      if (count_of(is_sent ? sent_ : received_, list.rank) < all) incomplete_.insert(list.rank);
    }
  }
  for (const int rank : others)
    text << rank << ' ' << count_of(sent_, rank) << ' ' << count_of(received_, rank) << '\n';
  transport_.post(key_of(work_.rank), text.str());
  has_ended_ = true;
}

void EarlyEnd::complete_with(int rank, const std::string& told) {
  std::istringstream text(told);
  int whom = 0;
  std::size_t sent = 0;
  std::size_t received = 0;
  while (text >> whom >> sent >> received) {
    if (whom != work_.rank) continue;
    const auto begin_missing = [&](const std::vector<HandedList>& lists, std::size_t& mine,
                                   std::size_t others, bool is_sent) {
      const HandedList* list = list_with(lists, rank);
      if (list == nullptr) return;
      const std::vector<Message> messages =
          messages_of(list->boxes, work_.catalog, work_.layers, work_.plan.message_bytes);
      if (others > messages.size())
        throw Error(ErrorKind::malformed, "rank " + std::to_string(rank) + " has begun " +
                                              std::to_string(others) + " messages of a plan of " +
                                              std::to_string(messages.size()) +
                                              "; do all ranks run the same version of shardwright?");
      for (; mine < others; ++mine) begin_void(rank, mine, messages[mine], is_sent);
    };
    begin_missing(work_.plan.receives, received_[rank], sent, false);
    begin_missing(work_.plan.sends, sent_[rank], received, true);
  }
}

void EarlyEnd::begin_void(int rank, std::size_t number, const Message& message, bool is_sent) {
  if (NodeMessages* const node = work_.node; node != nullptr) {
    if (!is_sent && node->message_from(rank, number) != nullptr) return;  // nobody looks at it
    if (std::byte* const to = is_sent ? node->message_to(rank, number) : nullptr) {
      std::memcpy(to + message.bytes, &is_void, sizeof(is_void));
      return node->send(rank, number);
    }
  }
  const std::size_t size = size_with_footer(message);
  Void one{{std::make_unique<std::byte[]>(size), size}};
  std::memcpy(one.bytes.get() + message.bytes, &is_void, sizeof(is_void));
  one.begun = is_sent ? transport_.send(rank, one.bytes.get(), size)
                      : transport_.receive(rank, one.bytes.get(), size);
  voids_.push_back(std::move(one));
}

}  // namespace shardwright
