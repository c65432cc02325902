#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels/product.h"
#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "storage/boxes/placing.h"

namespace shardwright {

/// A scale that no encoder writes.
struct OddScale {
  std::int64_t index = 0;
  std::string text;  ///< what it is, in words
};

/// The first of so many scales of FP8 or packed elements, side by side in CPU memory, that is the e8m0 byte
/// 255, or a number that is negative, infinite or NaN. 0 is the scale of a block of zeros.
std::optional<OddScale> odd_scale_in(DType dtype, const std::byte* scales, std::int64_t count);

/// Throws Error(malformed), naming tensor, file and index, for such a scale in a part of a transfer. What
/// multiplies plain elements may be any number.
void expect_meant_scales(const Transfer& transfer, const BoxInMemory& part, const Catalog& catalog);

/// Why a number cannot be the global scale that this tensor of the catalog holds, for elements that are
/// decoded by that product, naming tensor and file; empty if it can.
std::string fault_of_global(float global, Product product, const SourceTensor& tensor,
                            const Catalog& catalog);

}  // namespace shardwright
