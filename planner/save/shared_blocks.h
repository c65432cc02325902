#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/geometry/lattice.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/export_form.h"

namespace shardwright {

/// A box of an HF weight that is quantized, and where a tensor holds it.
struct HeldBox {
  std::string weight;  ///< HF name
  Shape shape;         ///< of the whole weight
  Encoding encoding;
  Box box;
  std::uint32_t spec = 0;  ///< index into the specs
  Lattice in_local;        ///< the box's elements in the local tensor, a factor for each of its dimensions
};

/// All that these specs hold of weights that the form quantizes.
std::vector<HeldBox> held_boxes(const std::vector<TensorSpec>& specs, const ExportForm& form);

/// The scales of one column of blocks of an HF weight, over some of its rows: blocks that a box of the weight
/// cuts, so that others hold the rest of them. Scales compare as the magnitudes that they come from do, so a
/// block's scale is the largest that any of its parts has found.
struct BlockColumn {
  std::string weight;                ///< HF name
  std::int64_t block = 0;            ///< columns 32 * block and on
  std::int64_t first_row = 0;        ///< of the HF weight
  std::vector<std::uint8_t> scales;  ///< e8m0, one for each row

  bool operator==(const BlockColumn&) const = default;
};

/// A column of blocks of which a tensor holds only a part.
struct CutBlocks {
  BlockColumn column;      ///< its scales not filled in
  Box part;                ///< of the HF weight that the tensor holds of these blocks
  std::uint32_t spec = 0;  ///< index into the specs
  Lattice in_local;        ///< the part's elements in the local tensor: rows, then columns
};

/// All such columns of these specs, in the form that the export has: of matrices in MXFP8. For all else there
/// is weight_numbers.h.
std::vector<CutBlocks> cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form);

/// Raises each rank's scales to the largest that any rank found for the same block.
void share_scales(std::vector<std::vector<BlockColumn>>& ranks);

}  // namespace shardwright
