#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "planner/handover/refit_plan.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// Where messages to a rank lie in its inbox, memory that it shares with those of its node that send to it:
/// in the same place in each hand-over. Layers lie one behind the other, and begin again where the inbox
/// ends.
struct InboxPlaces {
  static constexpr std::uint64_t nowhere = std::numeric_limits<std::uint64_t>::max();

  struct Stream {
    int rank = 0;                         ///< that sends it
    std::vector<std::uint64_t> messages;  ///< bytes before each; nowhere: it comes by another way
  };
  struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  std::vector<Stream> streams;
  std::vector<Range> layers;  ///< by their numbers; empty where nothing of one comes this way
  std::uint64_t bytes = 0;

  /// Whether messages of a layer may come as soon as all layers before `placed` have been put in their
  /// places.
  bool is_free(std::uint32_t layer, std::uint32_t placed) const;
};

/// Of what this rank gets from those for which `shares_memory`, by rank; two layers at a time, in at most so
/// many bytes. Layers of more than these have no place: the inbox is kept
/// from one hand-over to the next, and what is received aside from it is not.
InboxPlaces inbox_places(const RefitPlan& plan, const Catalog& catalog, const HandedLayers& layers,
                         const std::vector<bool>& shares_memory, std::size_t most_bytes);

/// In all of the staging, if need be, where that has a place for each layer and nothing else of this rank
/// needs staging; in half of it otherwise.
InboxPlaces inbox_places_in_staging(const RefitPlan& plan, const Catalog& catalog, const HandedLayers& layers,
                                    const std::vector<bool>& shares_memory, std::size_t staging_bytes);

}  // namespace shardwright
