#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/save/save_wire.h"

namespace shardwright {

/// Descriptions by the hash of their bytes. They may be kept from save to save.
using ValuesByHash = std::map<Hash, std::shared_ptr<const SavedValues>>;

/// Decodes what the state brings and is not known yet.
void learn_values(const RankState& state, ValuesByHash& known);

/// The states of all ranks, in their order, and what they bring. Throws one Error(malformed) that names each
/// rank (by its place) whose bytes are damaged, cut short or of another version.
std::vector<RankState> decode_states(const std::vector<std::string>& encoded, ValuesByHash& known);

/// Positions of the states that refer to a description that is not known.
std::vector<std::size_t> with_lost_values(const std::vector<RankState>& states, const ValuesByHash& known);

/// How two ranks' descriptions of the same tensors differ, a line for each tensor.
std::vector<std::string> differences(const SavedValues& expected, const std::string& expected_by,
                                     const SavedValues& found, const std::string& found_by);

/// "float32 [8, 3]", or "an object".
std::string dtype_and_shape_of(const SavedValue& value);

/// Whether two descriptions can be of one value: both of an object, or of one dtype and shape.
bool agree(const SavedValue& a, const SavedValue& b);

/// "rank 3", "ranks 0-2, 7"; of ranks in any order.
std::string ranks_text(std::vector<std::int64_t> ranks);

}  // namespace shardwright
