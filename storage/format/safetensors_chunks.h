#pragma once

#include <span>
#include <string>

#include "storage/format/safetensors.h"

namespace shardwright {

/// torch.distributed.checkpoint's HuggingFaceStorageWriter(save_distributed=True) stores each rank's shards
/// in files of that rank, under the name of the whole tensor, and in __metadata__["DCP_SHARDING_INFO"], as
/// JSON text, where each begins in the whole: {"name": {"saved_offsets": [0, 4]}}. Sets SourceTensor::offset
/// from it, if it is there. Throws Error (malformed) if it is not in that form, or does not fit the tensors
/// of the file.
void read_chunk_offsets(SafetensorsHeader& header, const std::string& file);

/// The text of DCP_SHARDING_INFO for these chunks.
std::string chunk_offsets_text(std::span<const SourceTensor> chunks);

}  // namespace shardwright
