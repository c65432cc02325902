#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Whether two tensors of a rank are the same memory, seen alike. Empty parts are, and what has no memory is
/// not.
bool is_same_memory(const TensorSpec& a, const TensorSpec& b);

/// Whether a tensor of this name may be a head, or an embedding that one is tied to.
bool may_be_tied(std::string_view fqn);

/// The heads of language models that are an embedding of the same state: the same memory, seen alike. An
/// export without a template stores them once, under the embedding's name, as transformers does. A head in
/// memory of its own is none, whatever it holds. Where a rank's parts of both are empty, they count as one:
/// ranks that hold more of them say the same.
std::vector<std::string> tied_heads(std::span<const TensorSpec> specs);

/// Takes the tied heads out of the specs, and returns their names.
std::vector<std::string> take_tied_heads(std::vector<TensorSpec>& specs);

}  // namespace shardwright
