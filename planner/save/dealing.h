#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/save/save_wire.h"

namespace shardwright {

/// A rank that holds something: some consecutive items of one holding.
struct Owner {
  std::uint32_t state;  ///< position of the rank
  std::uint32_t holding;
  std::uint32_t item;
  std::uint32_t items;
};

/// Something to be written once that several ranks hold.
struct Replicas {
  std::uint64_t bytes;
  std::size_t first_owner;  ///< among all owners
  std::size_t owners;       ///< how many
  std::uint32_t value;      ///< number in the whole job
};

/// What ranks are to write of what they hold; an entry for each state.
struct Dealt {
  std::vector<std::uint64_t> bytes_of_rank;  ///< to begin with: of what each alone holds
  std::vector<LeftToOthers> left_to_others;
  std::vector<std::vector<ItemCut>> cuts;
};

/// Gives each to the owner that has least to write so far, largest first; to the lower rank where several
/// have as little. `to_lowest`: to the lowest rank.
void deal_whole(std::vector<Replicas> replicas, const std::vector<Owner>& owners, bool to_lowest,
                Dealt& dealt);

/// Each must be one item. Gives out those that few ranks hold first, and of these the large ones, so that
/// what is left evens out the rest; cuts large ones along a dimension of their box, so that all owners have
/// about as many bytes to write. `box_of` and `cut` say the box of a replica and the dimension.
void deal_in_parts(std::vector<Replicas> replicas, const std::vector<Owner>& owners,
                   const std::function<Box(const Replicas&)>& box_of,
                   const std::function<std::size_t(const Replicas&, const Box&)>& cut, Dealt& dealt);

}  // namespace shardwright
