#pragma once

#include <cstdint>
#include <string>

#include "planner/geometry/box.h"

namespace shardwright {

/// Streams begin at multiples of this, and are a header of a multiple of it and the raw bytes.
inline constexpr std::uint64_t torch_stream_alignment = 64;

/// What makes a stream for torch.load(weights_only=True) of the raw bytes of a tensor behind it, row-major:
/// the form that torch.save(_use_new_zipfile_serialization=False) writes. That is five pickles (_legacy_load
/// in torch/serialization.py) and the count of bytes; the same header for the same chunk, a box of the tensor
/// of that name. `dtype` is torch's name. Throws Error(argument) for one that is no name.
std::string torch_stream_header(const std::string& name, const std::string& dtype,
                                std::uint64_t element_bytes, const Box& chunk);

}  // namespace shardwright
