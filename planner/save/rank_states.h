#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/names/tensor_spec.h"
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

/// What a rank has to save that holds these parts: each box named. Parts of one tensor may be several specs.
RankState state_of(const std::vector<TensorSpec>& specs, std::int64_t rank);

/// What a rank that holds all of `mine` is to write, from rank 0's bytes about it.
RankWrites read_writes(std::string_view bytes, const RankState& mine);

/// Calls `found` for each box that a rank writes of what it holds, in order. Throws Error(malformed) for a
/// slice outside its item.
void each_written(const RankState& mine, const ValuesByHash& known, const RankWrites& writes,
                  const std::function<void(const SavedValue&, const Box&)>& found);

/// What a rank writes.
struct WrittenBox {
  std::string fqn;
  Box box;  ///< of the whole tensor

  bool operator==(const WrittenBox&) const = default;
};

/// The same for a state that brings all its descriptions.
std::vector<WrittenBox> boxes_to_write(const RankState& mine, const RankWrites& writes);

/// How two ranks' descriptions of the same tensors differ, a line for each tensor.
std::vector<std::string> differences(const SavedValues& expected, const std::string& expected_by,
                                     const SavedValues& found, const std::string& found_by);

/// What each holding of a rank is, of descriptions that are known.
std::vector<SavedItems> items_of(const RankState& state, const ValuesByHash& known);

/// The same for a state that brings all its descriptions.
std::vector<SavedItems> items_of(const RankState& state);

/// "float32 [8, 3]", or "an object".
std::string dtype_and_shape_of(const SavedValue& value);

/// Whether two descriptions can be of one value: both of an object, or of one dtype and shape.
bool agree(const SavedValue& a, const SavedValue& b);

/// "rank 3", "ranks 0-2, 7"; of ranks in any order.
std::string ranks_text(std::vector<std::int64_t> ranks);

}  // namespace shardwright
