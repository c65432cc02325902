#pragma once

// Internal: the scalar definition over tiles of any strides.

#include "kernels/decode.h"

namespace shardwright {

/// place() one element after the other. REQUIRES: a dtype that is not packed.
void place_strided(const SourceTile& source, const DestinationTile& destination);

/// decode() one element after the other.
void decode_strided(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination);

}  // namespace shardwright
