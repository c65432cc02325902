#pragma once

#include <string>
#include <string_view>

namespace shardwright {

/// The key of the linear layers that take the same input as this weight's, and that engines run as one
/// matrix: the same for the weights of query, key and value of one attention, or of gate and up of one
/// expert. By HF names alone. Empty for a weight that shares its input with none.
std::string shared_input_of(std::string_view weight_name);

}  // namespace shardwright
