#pragma once

#include <string>

#include "planner/load/load_plan.h"
#include "storage/boxes/placing.h"

namespace shardwright {

/// Throws Error(malformed), naming tensor, file and index, for a scale of FP8 or packed elements in a part of
/// a transfer, in CPU memory, that no encoder writes: the e8m0 byte 255, a number that is negative, infinite
/// or NaN. 0 is the scale of a block of zeros. What multiplies plain elements may be any number.
void expect_meant_scales(const Transfer& transfer, const BoxInMemory& part, const Catalog& catalog);

/// Why a number cannot be the global scale of a transfer, naming tensor and file; empty if it can.
std::string fault_of_global(const Transfer& transfer, float global, const Catalog& catalog);

}  // namespace shardwright
