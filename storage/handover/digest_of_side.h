#pragma once

#include <string>

namespace shardwright {

struct ExportRequest;
struct RefitSide;

/// Of all that a hand-over is planned by: what a rank brings, whatever its memory is, and what is asked for.
/// Reads pages of the request's template. Throws as expect_memory_for_each() where the memory of the engine's
/// tensors cannot be written.
std::string checked_digest_of_side(const RefitSide& side, const ExportRequest& request);

}  // namespace shardwright
