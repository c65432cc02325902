#pragma once

#include <functional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Gives the bytes of a source tensor, row-major; none for one without memory, which is not looked at.
using BytesOf = std::function<std::vector<std::byte>(const SourceTensor&)>;

/// What the shapes of an adapter cannot say, of what the specs hold: that modules which share the trainer's
/// one A have the same one, bit for bit; that the B of modules which peft has joined is zero beside the
/// blocks on its diagonal; and, if `strict`, that it is zero for what has no pair. Returns a line for each
/// tensor that is not so. Tensors that are missing, or of other shapes than the rules say, are passed over:
/// plan_load tells of them. `name` is the file's, for messages. Throws as `bytes_of` does.
std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs, bool strict,
                                          const std::string& name, const BytesOf& bytes_of);

/// The same of a file, of which only the tensors concerned are read. Throws Error(io) as InputFile.
std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs, bool strict);

}  // namespace shardwright
