#include "planner/load/read_plan.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <unordered_set>
#include <utility>

#include "kernels/decode.h"
#include "planner/load/scaled_parts.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "planner/names/packed_weights.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// A tensor that belongs to the same module and is named like scales, under whatever name; null if none is.
const SourceTensor* likely_scales(const Catalog& catalog, std::string_view name) {
  const std::string_view module = name.substr(0, name.rfind('.') + 1);  // with the dot; empty without one
  auto tensor =
      std::lower_bound(catalog.tensors.begin(), catalog.tensors.end(), module,
                       [](const SourceTensor& one, std::string_view text) { return one.name < text; });
  for (; tensor != catalog.tensors.end() && tensor->name.starts_with(module); ++tensor) {
    const std::string_view own = std::string_view(tensor->name).substr(module.size());
    const bool is_of_module = own.find('.') == std::string_view::npos || tensor->name.starts_with(name);
    if (is_of_module && tensor->name != name && own.find("scale") != std::string_view::npos) return &*tensor;
  }
  return nullptr;
}

class ReadPlanner {
 public:
  explicit ReadPlanner(const Catalog& catalog) : catalog_(catalog) {}

  bool needs_scales(std::span<const SourceTensor> tensor) {
    if (tensor.empty() || is_wide_float(tensor.front().dtype)) return false;
    const std::string& name = tensor.front().name;
    if (!weight_in(catalog_, tensor.front()).empty() || !what_decodes(catalog_, tensor.front()).empty())
      return true;
    if (is_scale_name(name)) return false;
    if (!scales_of(catalog_, name).empty()) return true;
    return is_float8(tensor.front().dtype) &&
           (checkpoint_has_scales() || likely_scales(catalog_, name) != nullptr);
  }

  LoadPlan plan(const std::vector<ReadRequest>& requests, const std::vector<TensorSpec>& specs) {
    for (std::size_t i = 0; i < requests.size(); ++i)
      add(requests[i], specs[i], static_cast<std::uint32_t>(i));
    problems_.throw_if_any(ErrorKind::mismatch, "cannot read " + catalog_.directory.string() + ":");
    order_and_count(plan_, specs, catalog_);
    return std::move(plan_);
  }

 private:
  bool checkpoint_has_scales() {
    if (!has_scales_) {
      has_scales_ = std::any_of(catalog_.tensors.begin(), catalog_.tensors.end(),
                                [](const SourceTensor& tensor) { return is_scale_name(tensor.name); });
    }
    return *has_scales_;
  }

  void add(const ReadRequest& request, const TensorSpec& spec, std::uint32_t index) {
    const std::span<const SourceTensor> chunks = catalog_.find(request.name);
    const auto found = std::find_if(chunks.begin(), chunks.end(), [&](const SourceTensor& candidate) {
      return candidate.offset == request.chunk_offset;
    });
    if (found == chunks.end()) {
      note(request.name + ": the checkpoint has no chunk of it at " + to_string(request.chunk_offset));
      return;
    }
    const SourceTensor& chunk = *found;
    std::string fault = fault_of_request(request, spec, chunk);
    Encoding encoding{chunk.dtype, false, DType::U8, 1, 1};
    if (fault.empty() && chunk.dtype != spec.dtype) fault = choose_encoding(chunks, spec, encoding);
    if (!fault.empty()) {
      note(request.name + ": " + fault);
      return;
    }
    if (is_empty(request.box)) return;
    Transfer transfer;
    transfer.source = static_cast<std::uint32_t>(&chunk - catalog_.tensors.data());
    transfer.encoding = encoding;
    transfer.source_box = request.box;
    transfer.destination = index;
    transfer.destination_offset = Shape(spec.local_shape.size(), 0);
    transfer.axes.resize(spec.local_shape.size());
    std::iota(transfer.axes.begin(), transfer.axes.end(), 0);
    if (encoding.scaled) {
      add_scaled(std::move(transfer), chunks, chunk);
    } else {
      plan_.transfers.push_back(std::move(transfer));
    }
  }

  /// What makes a request impossible, whatever the dtypes; empty if nothing does.
  std::string fault_of_request(const ReadRequest& request, const TensorSpec& spec,
                               const SourceTensor& chunk) const {
    if (request.box.size.size() != chunk.shape.size() ||
        intersection(request.box, whole(chunk.shape)) != request.box) {
      return "expected a box inside the stored shape " + to_string(chunk.shape) + ", found " +
             to_string(request.box);
    }
    if (spec.local_shape != request.box.size) {
      return "expected a tensor of shape " + to_string(request.box.size) + " to read into, found " +
             to_string(spec.local_shape);
    }
    if (bytes_of(chunk.dtype) == 0 && scales_of(catalog_, request.name).empty()) {
      return "cannot read the packed format " + std::string(name_of(chunk.dtype)) +
             "; expected a dtype of whole bytes";
    }
    return fault_of(spec);
  }

  /// For a destination of another dtype than the stored one. Returns what makes that impossible.
  std::string choose_encoding(std::span<const SourceTensor> chunks, const TensorSpec& spec,
                              Encoding& encoding) {
    const DType element = chunks.front().dtype;
    const std::string cannot = "cannot turn the stored " + std::string(name_of(element)) + " in " +
                               catalog_.files[chunks.front().file].name;
    const std::string into = " into " + std::string(name_of(spec.dtype));
    const std::string weight = weight_in(catalog_, chunks.front());
    const std::string scales = what_decodes(catalog_, chunks.front());
    if (!weight.empty() || !scales.empty()) {
      return cannot + into + ": it holds packed codes, " +
             (scales.empty() ? "" : "which " + scales + " decodes, ") +
             "and no numbers of that dtype; expected a destination of " + std::string(name_of(element)) +
             ", which gets it as it is stored" +
             (weight.empty() ? "" : "; shardwright's LoadPlanner decodes it as " + weight);
    }
    if (!needs_scales(chunks)) return can_convert(element, spec.dtype) ? "" : cannot + into;
    try {
      encoding = encoding_of(catalog_, chunks);
    } catch (const Error& error) {
      const SourceTensor* likely = likely_scales(catalog_, chunks.front().name);
      const bool is_unknown = scales_of(catalog_, chunks.front().name).empty() && likely != nullptr;
      return cannot + into + ": " + error.what() +
             (is_unknown ? "; " + likely->name + " may be meant, but is no such name" : "") +
             "; a destination of " + std::string(name_of(element)) + " gets it as it is stored";
    }
    if (is_wide_float(spec.dtype)) return "";
    return cannot + ", which " + chunks.front().name + std::string(encoding.scale_suffix) + " scales," +
           into + "; expected a destination of BF16, F16, F32 or F64, which gets it decoded, or of " +
           std::string(name_of(element)) + ", which gets it as it is stored";
  }

  void add_scaled(Transfer transfer, std::span<const SourceTensor> chunks, const SourceTensor& chunk) {
    const Box in_chunk = transfer.source_box;
    Box box = in_chunk;
    for (std::size_t d = 0; d < box.offset.size(); ++d) box.offset[d] += chunk.offset[d];
    const auto global = global_scale_of(catalog_, transfer.encoding, chunk.name);
    if (!global.empty()) transfer.global = global.data() - catalog_.tensors.data();
    std::vector<Box> read;
    for (const ScaledPart& part : scaled_parts(transfer.encoding, box, Catalog::global_shape(chunks),
                                               scales_of(catalog_, chunk.name))) {
      read.push_back(part.box);
      transfer.scales = part.scales - catalog_.tensors.data();
      transfer.scale_box = part.scale_box;
      transfer.first_row_in_block = part.first_row_in_block;
      transfer.first_column_in_block = part.first_column_in_block;
      transfer.source_box = part.box;
      for (std::size_t d = 0; d < box.offset.size(); ++d) {
        transfer.source_box.offset[d] -= chunk.offset[d];
        transfer.destination_offset[d] = transfer.source_box.offset[d] - in_chunk.offset[d];
      }
      plan_.transfers.push_back(transfer);
    }
    if (const std::string fault = tiling_fault(box, std::move(read)); !fault.empty()) {
      note(chunk.name + ": the chunks of " + chunk.name + std::string(transfer.encoding.scale_suffix) +
           " do not make up the whole: " + fault);
    }
  }

  /// Once, though a tensor may be asked for in many boxes.
  void note(const std::string& line) {
    if (noted_.insert(line).second) problems_.add(line);
  }

  const Catalog& catalog_;
  std::optional<bool> has_scales_;
  std::unordered_set<std::string> noted_;
  Problems problems_;
  LoadPlan plan_;
};

}  // namespace

bool needs_scales(const Catalog& catalog, std::string_view name) {
  return ReadPlanner(catalog).needs_scales(catalog.find(name));
}

LoadPlan plan_reads(const std::vector<ReadRequest>& requests, const std::vector<TensorSpec>& specs,
                    const Catalog& catalog) {
  return ReadPlanner(catalog).plan(requests, specs);
}

}  // namespace shardwright
