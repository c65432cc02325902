#pragma once

#include <cstdint>
#include <string>

#include "planner/geometry/box.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// Gives weights that are packed in files, and their companions, the names and shapes by which rules know
/// them; SourceTensor::stored then says what files call them. Bytes stay where they are.
///
///     in files                                       as seen
///     X.weight_packed U8 [R, C/2]                    X.weight F4 [R, C]        compressed-tensors MXFP4,
///     NVFP4 X.weight_packed I32 [R, C/8]                   X.weight I4 [R, C]        compressed-tensors INT4
///     X.weight U8 [R, C/2], X.weight_scale           X.weight F4 [R, C]        ModelOpt
///     X.weight I8 [R, C/2], X.scale F8_E8M0          X.weight F4, X.weight_scale    DeepSeek V4
///     X.weight F8_E4M3, X.scale                      X.weight_scale            DeepSeek V4
///     X_blocks U8 [E, R, G, 16], X_scales U8         X F4 [E, R, 32 G], X_scale_inv    gpt-oss
///
/// Chunks of a tensor are seen so one by one; those of blocks that are cut are not, as a weight whose
/// companion is not there. Checksums go with their tensors.
void see_packed_weights(Catalog& catalog);

/// The inverse: what the files hold, under the names that they have.
Catalog as_stored(const Catalog& catalog);

/// Whether that is what the catalog says anyway.
bool is_as_stored(const Catalog& catalog);

/// The name by which rules know the weight whose elements this tensor holds, several in a byte or word, in a
/// catalog of what files hold; empty if it holds none.
std::string weight_in(const Catalog& stored, const SourceTensor& tensor);

/// Elements of a tensor, as it is seen, that share one of its elements in the file: 2 in a byte, 8 in an I32,
/// else 1.
std::int64_t elements_of_unit(const SourceTensor& tensor);

/// Whether blocks of a row are a dimension of their own in the file, as gpt-oss has them.
bool has_blocks(const SourceTensor& tensor);

/// The smallest box of a tensor (or chunk), as it is seen, that holds all of that box and is whole in the
/// file: it begins and ends with bytes, words or, where blocks are a dimension of their own, blocks.
Box whole_in_file(const SourceTensor& tensor, Box box);

/// Such a box, or an offset, in the file's own shape.
Box box_in_file(const SourceTensor& tensor, const Box& box);
Shape offset_in_file(const SourceTensor& tensor, const Shape& offset);

}  // namespace shardwright
