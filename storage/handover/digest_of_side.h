#pragma once

#include <string>

namespace shardwright {

struct ExportRequest;
struct RefitSide;

/// Of all that a hand-over is planned by: what a rank brings, whatever its memory is, and what is asked for.
/// Reads pages of the request's template.
std::string digest_of_side(const RefitSide& side, const ExportRequest& request);

}  // namespace shardwright
