#pragma once

#include <string_view>

namespace shardwright {

/// Whether a native name is of a module of experts, and not of one of them: files may have stacked them
/// already, where no rule counts them. "layers.0.mlp.experts.down_proj" is, "experts.3.w1.weight" and
/// "shared_experts.w1.weight" are not.
bool names_all_experts(std::string_view fqn);

}  // namespace shardwright
