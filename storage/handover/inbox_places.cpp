#include "storage/handover/inbox_places.h"

#include <algorithm>

#include "storage/handover/message_memory.h"
#include "storage/memory_units.h"
#include "storage/rounded_up.h"

namespace shardwright {
namespace {

std::uint64_t room_for(const Message& message) { return rounded_up(size_with_footer(message), cache_line); }

/// Whether some of what this rank gets or sends needs staging beside its inbox.
bool is_in_part_beside(const RefitPlan& plan, const std::vector<bool>& shares) {
  const auto is_beside = [&](const HandedList& list) { return !shares[static_cast<std::size_t>(list.rank)]; };
  return std::any_of(plan.receives.begin(), plan.receives.end(), is_beside) ||
         std::any_of(plan.sends.begin(), plan.sends.end(), is_beside);
}

bool has_place_for_all(const InboxPlaces& places) {
  return std::all_of(places.streams.begin(), places.streams.end(), [](const InboxPlaces::Stream& stream) {
    return std::find(stream.messages.begin(), stream.messages.end(), InboxPlaces::nowhere) ==
           stream.messages.end();
  });
}

}  // namespace

bool InboxPlaces::is_free(std::uint32_t layer, std::uint32_t placed) const {
  const Range& mine = layers[layer];
  for (std::uint32_t l = placed; l < layer; ++l) {
    if (mine.begin < layers[l].end && layers[l].begin < mine.end) return false;
  }
  return true;
}

InboxPlaces inbox_places(const RefitPlan& plan, const Catalog& catalog, const HandedLayers& layers,
                         const std::vector<bool>& shares_memory, std::size_t most_bytes) {
  InboxPlaces places;
  std::vector<std::vector<Message>> messages;
  std::vector<std::uint64_t> bytes(layers.names.size());
  for (const HandedList& list : plan.receives) {
    if (!shares_memory[static_cast<std::size_t>(list.rank)]) continue;
    messages.push_back(messages_of(list.boxes, catalog, layers, plan.message_bytes));
    places.streams.push_back({list.rank, {}});
    for (const Message& message : messages.back()) bytes[message.layer] += room_for(message);
  }
  std::uint64_t largest = 0;
  for (std::uint64_t& of_layer : bytes) {
    if (of_layer > most_bytes) of_layer = 0;
    largest = std::max(largest, of_layer);
  }
  places.bytes = std::min<std::uint64_t>(most_bytes, 2 * largest);
  std::uint64_t end = 0;
  for (const std::uint64_t of_layer : bytes) {
    const std::uint64_t begin = end + of_layer > places.bytes ? 0 : end;
    end = begin + of_layer;
    places.layers.push_back({begin, end});
  }
  std::vector<std::uint64_t> next;
  for (const InboxPlaces::Range& range : places.layers) next.push_back(range.begin);
  for (std::size_t s = 0; s < messages.size(); ++s) {
    for (const Message& message : messages[s]) {
      std::uint64_t& at = next[message.layer];
      const bool has_place = bytes[message.layer] > 0;
      places.streams[s].messages.push_back(has_place ? at : InboxPlaces::nowhere);
      if (has_place) at += room_for(message);
    }
  }
  return places;
}

InboxPlaces inbox_places_in_staging(const RefitPlan& plan, const Catalog& catalog, const HandedLayers& layers,
                                    const std::vector<bool>& shares_memory, std::size_t staging_bytes) {
  if (!is_in_part_beside(plan, shares_memory)) {
    // Some of it is left to what else a rank holds meanwhile, unless one layer needs nearly all.
    InboxPlaces places =
        inbox_places(plan, catalog, layers, shares_memory, staging_bytes - staging_bytes / 8);
    if (has_place_for_all(places)) return places;
    places = inbox_places(plan, catalog, layers, shares_memory, staging_bytes);
    std::uint64_t largest = 0;
    for (const InboxPlaces::Range& layer : places.layers)
      largest = std::max(largest, layer.end - layer.begin);
    if (has_place_for_all(places)) return inbox_places(plan, catalog, layers, shares_memory, largest);
  }
  return inbox_places(plan, catalog, layers, shares_memory, staging_bytes / 2);
}

}  // namespace shardwright
