#include "planner/read_plan.h"

#include <algorithm>
#include <numeric>

#include "kernels/decode.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// What makes a request impossible; empty if nothing does.
std::string fault_of_request(const ReadRequest& request, const TensorSpec& spec, const SourceTensor* chunk) {
  if (chunk == nullptr) return "the checkpoint has no chunk of it at " + to_string(request.chunk_offset);
  if (request.box.size.size() != chunk->shape.size() ||
      intersection(request.box, whole(chunk->shape)) != request.box) {
    return "expected a box inside the stored shape " + to_string(chunk->shape) + ", found " +
           to_string(request.box);
  }
  if (spec.local_shape != request.box.size) {
    return "expected a tensor of shape " + to_string(request.box.size) + " to read into, found " +
           to_string(spec.local_shape);
  }
  if (bytes_of(chunk->dtype) == 0 || !can_convert(chunk->dtype, spec.dtype)) {
    return "cannot turn the stored " + std::string(name_of(chunk->dtype)) + " into " +
           std::string(name_of(spec.dtype));
  }
  return fault_of(spec);
}

}  // namespace

LoadPlan plan_reads(const std::vector<ReadRequest>& requests, const std::vector<TensorSpec>& specs,
                    const Catalog& catalog) {
  LoadPlan plan;
  Problems problems;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const ReadRequest& request = requests[i];
    const TensorSpec& spec = specs[i];
    const std::span<const SourceTensor> chunks = catalog.find(request.name);
    const auto chunk = std::find_if(chunks.begin(), chunks.end(), [&](const SourceTensor& candidate) {
      return candidate.offset == request.chunk_offset;
    });
    const SourceTensor* stored = chunk == chunks.end() ? nullptr : &*chunk;
    if (std::string fault = fault_of_request(request, spec, stored); !fault.empty()) {
      problems.add(request.name + ": " + fault);
      continue;
    }
    Transfer transfer;
    transfer.source = static_cast<std::uint32_t>(stored - catalog.tensors.data());
    transfer.encoding = {stored->dtype, false, DType::U8, 1, 1};
    transfer.source_box = request.box;
    transfer.destination = static_cast<std::uint32_t>(i);
    transfer.destination_offset = Shape(spec.local_shape.size(), 0);
    transfer.axes.resize(spec.local_shape.size());
    std::iota(transfer.axes.begin(), transfer.axes.end(), 0);
    if (!is_empty(request.box)) plan.transfers.push_back(std::move(transfer));
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot read " + catalog.directory.string() + ":");
  order_and_count(plan, specs, catalog);
  return plan;
}

}  // namespace shardwright
