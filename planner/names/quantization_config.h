#pragma once

#include <string>

#include "planner/names/catalog.h"

namespace shardwright {

/// How "quantization_config" of a checkpoint's config.json contradicts the tensors that are there: it speaks
/// of weights of one kind (FP8, two in a byte, 4-bit integers, AWQ's or GPTQ's words), and the only encoded
/// weights are of others, or there are none. Empty if it does not, or says nothing that is known. The tensors
/// decide how each weight is decoded; this tells of files that do not belong together.
std::string fault_of_quantization_config(const Catalog& catalog);

/// How a weight is stored that is there under the name of an encoding that is known by name only (AWQ, GPTQ),
/// and what decoding it would need; empty if it is not there so either.
std::string unknown_encoding_of(const Catalog& catalog, const std::string& weight_name);

/// True for a quantization_config's "quant_method" whose encodings are known. One that is not has weights
/// that no one here can tell from plain ones.
bool is_known_method(std::string_view method);

}  // namespace shardwright
