#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// What would make names of a state dict fit that are not in the checkpoint: the prefix of a wrapper, such as
/// `module.` of DistributedDataParallel, on one of the two sides; or the key under which one state dict
/// stands in the other. Empty if nothing would. `available` are the names of the checkpoint that nobody has
/// asked for. The lines speak to a Python trainer.
std::vector<std::string> hints_at_names(const std::vector<std::string>& missing,
                                        const std::vector<std::string>& available);

}  // namespace shardwright
