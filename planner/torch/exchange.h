#pragma once

#include <functional>
#include <string>
#include <vector>

#include "planner/torch/peers.h"

namespace shardwright {

/// Every rank gives bytes; rank 0 turns those of all ranks, in their order, into an answer for each; every
/// rank gets its own. `mine` and `answers` may throw: then all ranks throw the same Error, which names the
/// ranks concerned and what each has said; its kind and errno are those of the first. If ranks have not come
/// within the timeout, those that have throw Error(io) that names the missing ones; ranks that wait for a
/// rank 0 that is gone throw it after twice the timeout. Nothing hangs. Rank 0 throws once the others have
/// taken its error, or after 5 s: it may end its process then, and with it the store.
std::string exchange(const Peers& peers, const std::function<std::string()>& mine,
                     const std::function<std::vector<std::string>(std::vector<std::string>)>& answers);

}  // namespace shardwright
