#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/save/export_form.h"
#include "planner/save/shared_blocks.h"
#include "planner/save/weight_numbers.h"

namespace shardwright {

/// What a rank tells the coordinator of an export.
struct ExportHoldings {
  std::string state;  ///< what it holds; see told_state()
  std::vector<std::uint32_t>
      order;  ///< numbers of the state's values in the order of the state dict; empty: it is theirs
  std::vector<BlockColumn> columns;  ///< as the rank's own parts would have them
  std::vector<std::string> asked =
      {};  ///< what the rank was asked for, an argument each: all must say the same
  std::vector<WeightNumbers> numbers = {};  ///< likewise as its own parts have them

  bool operator==(const ExportHoldings&) const = default;
};

/// What the coordinator tells a rank.
struct ExportShare {
  std::string refusal;                 ///< why there is no plan, see throw_refusal(); else empty
  std::string tensors;                 ///< all there are, in the same order on every rank: encode_tensors()
  std::string writes;                  ///< what this rank writes, as encoded RankWrites
  std::vector<BlockColumn> columns;    ///< the rank's own, as agreed on
  std::vector<std::uint32_t> headers;  ///< the files whose headers this rank writes
  std::vector<WeightNumbers> numbers = {};  ///< the rank's own, as agreed on
  std::vector<float> largest = {};          ///< magnitude of each weight with a global scale; see plan.proto

  bool operator==(const ExportShare&) const = default;
};

/// The wire form (planner/wire/plan.proto). Decoding throws Error(malformed) for bytes that are no such
/// message, or of another version.
std::string encode_holdings(const ExportHoldings& holdings);
ExportHoldings decode_holdings(const std::string& bytes);
std::string encode_share(const ExportShare& share);
ExportShare decode_share(const std::string& bytes);

/// Tensors of dtypes that torch has, and back.
std::string encode_tensors(const std::vector<SavedTensor>& tensors);
std::vector<SavedTensor> decode_tensors(const std::string& bytes);

}  // namespace shardwright
