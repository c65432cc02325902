#include "storage/handover/engine_memory.h"

#include <cstddef>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/names/tensor_spec.h"
#include "planner/problems.h"

namespace shardwright {

void expect_memory_for_each(const std::vector<EngineTensor>& tensors,
                            const std::vector<EngineMemory>& memory) {
  if (memory.size() != tensors.size())
    throw Error(ErrorKind::argument, "expected memory for each of the engine's tensors");
  std::vector<TensorSpec> specs;
  Problems problems;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    TensorSpec spec = whole_tensor(tensors[t].name, tensors[t].dtype, tensors[t].shape, memory[t].data);
    spec.local_strides = memory[t].strides;
    if (std::string fault = fault_of(spec); !fault.empty()) problems.add(spec.fqn + ": " + fault);
    specs.push_back(std::move(spec));
  }
  if (problems.lines.empty()) problems.lines = shared_memory(specs);
  problems.throw_if_any(ErrorKind::mismatch,
                        "the engine's tensors cannot be written; nothing has been sent:");
}

}  // namespace shardwright
