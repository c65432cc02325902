#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"

namespace shardwright {

// What stands beside an encoded weight in a checkpoint, by names: scales, global scales, and companions, such
// as scales of activations.

/// The names that the scales of a weight may have: "<weight>_scale_inv" (despite the name, it multiplies),
/// and beside a "<module>.weight" also "<module>.weight_scale", which compressed-tensors, ModelOpt and vLLM
/// write.
std::vector<std::string> scale_names_of(std::string_view weight_name);

/// The inverse: the weight's name for the name of a scale, any other name unchanged.
std::string_view weight_name_of(std::string_view name);

/// Whether weight_name_of() gives another name than this.
bool is_scale_name(std::string_view name);

/// How the name of a weight's scales ends, behind the weight's name; empty for any other tensor's name.
std::string_view scale_suffix_of(std::string_view name);

/// The weight's name for that of a companion that is no scale, such as "<module>.weight_global_scale", by its
/// ending alone; any other name unchanged.
std::string_view weight_name_of_companion(std::string_view name);

/// The chunks of the scales of a weight; empty if the catalog has none.
std::span<const SourceTensor> scales_of(const Catalog& catalog, std::string_view weight_name);

/// Endings of global scales, behind the weight's name.
inline constexpr std::string_view global_suffixes[] = {"_scale_2", "_global_scale"};

/// The chunks of a weight's global scale; empty if the encoding or the catalog has none.
std::span<const SourceTensor> global_scale_of(const Catalog& catalog, const Encoding& encoding,
                                              std::string_view weight_name);

/// Whether the tensor belongs to an encoded weight of the catalog and is neither its elements nor scales of
/// them: its shape, or scales of activations, which training has no use for.
bool is_companion(const Catalog& catalog, std::string_view name);

/// The encoded weight that a tensor belongs to as is_companion() says; empty if to none.
std::string weight_of_companion(const Catalog& catalog, std::string_view name);

/// Whether such a companion is for running the model, as scales of activations and of a KV cache are: the
/// weight's elements can be decoded without it.
bool is_of_activations(const Catalog& catalog, std::string_view name);

/// The catalog's names of what belongs to an encoded weight: scales, global scale and all companions.
std::vector<std::string> companions_of(const Catalog& catalog, std::string_view weight_name);

/// The name of the scales of a tensor whose integers are codes of a weight that a trainer keeps packed, under
/// its own names; empty: there are none, and its integers are numbers.
std::string what_decodes(const Catalog& catalog, const SourceTensor& tensor);

}  // namespace shardwright
