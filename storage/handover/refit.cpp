#include "storage/handover/refit.h"

#include <array>
#include <chrono>
#include <exception>
#include <future>
#include <utility>

#include "storage/handover/early_end.h"
#include "storage/handover/message_memory.h"
#include "storage/handover/message_receiver.h"
#include "storage/handover/message_sender.h"

namespace shardwright {
namespace {

constexpr std::chrono::milliseconds between_looks{50};

}  // namespace

RefitOutcome run_refit(const RefitWork& work, const Transport& transport) {
  const auto begin = std::chrono::steady_clock::now();
  OwnMessages own;
  MessageMemory memory(work.staging_bytes);
  FirstFailure failure;
  MessageSender sender(work, transport, own, memory, failure);
  MessageReceiver receiver(work, transport, own, memory, failure);
  EarlyEnd early_end(work, transport, sender, receiver, own, failure);
  const auto run = [&](auto& side) {
    try {
      side.run();
    } catch (...) {
      failure.note(std::current_exception());
    }
    own.close();
  };
  const std::array<std::future<void>, 2> sides{std::async(std::launch::async, [&] { run(sender); }),
                                               std::async(std::launch::async, [&] { run(receiver); })};
  for (const std::future<void>& side : sides) {
    while (side.wait_for(between_looks) != std::future_status::ready) early_end.look();
  }
  early_end.finish();
  RefitOutcome outcome;
  outcome.report.bytes_sent = sender.bytes_sent;
  outcome.report.bytes_kept = sender.bytes_kept;
  outcome.report.messages = sender.messages_sent;
  outcome.report.bytes_received = receiver.bytes_received;
  outcome.report.peak_staging_bytes = memory.most();
  outcome.report.layers = receiver.committed.size() + receiver.left.size();
  outcome.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  outcome.committed = std::move(receiver.committed);
  outcome.left = std::move(receiver.left);
  outcome.failure = failure.first();
  return outcome;
}

}  // namespace shardwright
