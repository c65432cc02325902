#include "storage/handover/refit.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <future>
#include <thread>
#include <utility>

#include "storage/handover/early_end.h"
#include "storage/handover/message_memory.h"
#include "storage/handover/message_receiver.h"
#include "storage/handover/message_sender.h"
#include "storage/nap.h"
#include "storage/seconds.h"

namespace shardwright {
namespace {

/// What others have begun is completed once they tell it. One that does not for half a minute is gone.
constexpr int looks_for_others = 600;

}  // namespace

RefitOutcome run_refit(const RefitWork& work, const Transport& transport) {
  const Clock::time_point begin = Clock::now();
  OwnMessages own;
  const std::size_t inbox = work.node != nullptr ? work.node->bytes() : 0;
  MessageMemory memory(work.staging_bytes - std::min(inbox, work.staging_bytes));
  FirstFailure failure;
  MessageSender sender(work, transport, own, memory, failure);
  MessageReceiver receiver(work, transport, own, memory, failure);
  EarlyEnd early_end(work, transport, sender, receiver, own, failure);
  const auto run = [&](auto& side) {
    try {
      side.run();
    } catch (...) {
      failure.note_end(std::current_exception());
    }
    own.close();
  };
  const std::array<std::future<void>, 2> sides{std::async(std::launch::async, [&] { run(sender); }),
                                               std::async(std::launch::async, [&] { run(receiver); })};
  for (const std::future<void>& side : sides) {
    while (side.wait_for(nap) != std::future_status::ready) early_end.look();
  }
  for (int looks = 0; !early_end.has_heard_from_all() && looks < looks_for_others; ++looks) {
    std::this_thread::sleep_for(nap);
    early_end.look();
  }
  early_end.finish();
  RefitOutcome outcome;
  outcome.report.bytes_sent = sender.bytes_sent;
  outcome.report.bytes_kept = sender.bytes_kept;
  outcome.report.messages = sender.messages_sent;
  outcome.report.bytes_received = receiver.bytes_received;
  outcome.report.bytes_in_memory = sender.bytes_in_memory + receiver.bytes_in_memory;
  outcome.report.peak_staging_bytes = memory.most() + inbox;
  outcome.report.layers = receiver.committed.size() + receiver.left.size();
  outcome.report.seconds = seconds_since(begin);
  outcome.committed = std::move(receiver.committed);
  outcome.left = std::move(receiver.left);
  outcome.failure = failure.first();
  outcome.has_ended_early = early_end.has_ended();
  try {  // what came meanwhile: where several ranks are interrupted at once, one of them ends it for all
    if (work.check_for_interrupt) work.check_for_interrupt();
  } catch (...) {
    outcome.failure = std::current_exception();
  }
  return outcome;
}

}  // namespace shardwright
