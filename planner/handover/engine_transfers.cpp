#include "planner/handover/engine_transfers.h"

#include <algorithm>
#include <optional>
#include <span>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/load/load_plan.h"
#include "planner/load/transfers.h"
#include "planner/names/catalog.h"
#include "planner/names/companions.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// What is stored of a tensor, in the form that files hold.
DType stored_dtype(const SourceTensor& tensor) {
  return tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
}

const Shape& stored_shape(const SourceTensor& tensor) {
  return tensor.stored == nullptr ? tensor.shape : tensor.stored->shape;
}

/// The tensor of a name that files have.
const SourceTensor* find_stored(const Catalog& catalog, const std::string& name) {
  const std::span<const SourceTensor> found = catalog.find(name);
  if (!found.empty() && found.front().stored == nullptr) return &found.front();
  const auto stored = std::find_if(
      catalog.tensors.begin(), catalog.tensors.end(),
      [&](const SourceTensor& tensor) { return tensor.stored != nullptr && tensor.stored->name == name; });
  return stored == catalog.tensors.end() ? nullptr : &*stored;
}

/// What an engine that asks for a tensor which is not there may have meant.
std::string advice_on(const Catalog& catalog, const std::string& name) {
  const std::string weight(weight_name_of(name));
  if (weight == name) return "";
  const std::span<const SourceTensor> found = catalog.find(weight);
  if (found.empty()) return "";
  return "; " + weight + " is " + std::string(name_of(stored_dtype(found.front()))) +
         ", without such scales: expected another quantization=, or an engine that takes that";
}

/// The sizes of a part along the dimensions of the engine's tensor, or why it is no part of it.
std::string fault_of_place(const EngineTensor& tensor, const EnginePart& part) {
  const std::size_t factors = part.box.size.size();
  if (part.at.size() != tensor.shape.size())
    return "expected a place of " + std::to_string(tensor.shape.size()) + " dimensions in " + tensor.name +
           " " + to_string(tensor.shape) + ", found " + to_string(part.at);
  if (part.axes.size() != factors || (!part.steps.empty() && part.steps.size() != factors))
    return "expected an axis, and a step if there are any, for each of the " + std::to_string(factors) +
           " dimensions of its box";
  for (std::size_t i = 0; i < factors; ++i) {
    const bool has_axis = part.axes[i] >= 0;
    if (has_axis ? part.axes[i] >= static_cast<int>(tensor.shape.size()) : part.box.size[i] != 1)
      return "expected axes of " + std::to_string(tensor.shape.size()) +
             " dimensions, and one for each dimension of its box that has several indices";
    if (!part.steps.empty() && part.steps[i] < 1) return "expected steps of 1 or more";
  }
  const Lattice lattice{part.at, part.box.size, part.axes,
                        part.steps.empty() ? Shape(factors, 1) : part.steps};
  if (lies_inside(lattice, tensor.shape)) return "";
  return "its box " + to_string(part.box) + " at " + to_string(part.at) + " does not lie inside of " +
         tensor.name + " " + to_string(tensor.shape);
}

/// Whether the bytes of one are those of the other: e8m0 has a dtype of its own in newer releases of torch.
bool are_alike(DType a, DType b) {
  const auto plain = [](DType dtype) { return dtype == DType::F8_E8M0 ? DType::U8 : dtype; };
  return plain(a) == plain(b);
}

std::string fault_of_part(const EngineTensor& tensor, const EnginePart& part, const SourceTensor& stored) {
  if (stored.stored != nullptr && in_units(stored.dtype, stored.shape) != stored.stored->shape)
    return "is packed in words or blocks (" + to_string(stored.stored->shape) + " of " +
           std::string(name_of(stored.stored->dtype)) +
           "), which engines are not handed yet; hand it over as "
           "\"mxfp4-modelopt\" or \"nvfp4-modelopt\", or export it";
  if (!are_alike(stored_dtype(stored), tensor.dtype))
    return "expected " + std::string(name_of(tensor.dtype)) + ", as the engine's tensor is, found " +
           std::string(name_of(stored_dtype(stored)));
  const Shape& shape = stored_shape(stored);
  if (!part.view.empty() && !view_with(part.view, shape))
    return "is " + to_string(shape) + ", of which " + to_string(part.view) + " is no view";
  if (!lies_inside(part.box, part.view.empty() ? shape : part.view))
    return "expected a box of " + to_string(part.view.empty() ? shape : part.view) + ", found " +
           to_string(part.box);
  return fault_of_place(tensor, part);
}

/// The part with all that is left to it said.
EnginePart completed(EnginePart part, const EngineTensor& tensor, const Shape& stored) {
  if (part.box.offset.empty() && part.box.size.empty())
    part.box = whole(part.view.empty() ? stored : part.view);
  if (part.at.empty()) part.at.assign(tensor.shape.size(), 0);
  if (part.axes.empty()) {
    const auto begin = static_cast<int>(tensor.shape.size()) - static_cast<int>(part.box.size.size());
    for (std::size_t i = 0; i < part.box.size.size(); ++i) part.axes.push_back(begin + static_cast<int>(i));
  }
  return part;
}

}  // namespace

std::vector<Transfer> transfers_into(const std::vector<EngineTensor>& tensors, const Catalog& catalog,
                                     const std::string& what) {
  std::vector<Transfer> transfers;
  Problems problems;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const EngineTensor& tensor = tensors[t];
    const std::size_t first = transfers.size();
    bool fits = true;
    for (const EnginePart& given : tensor.parts) {
      const SourceTensor* stored = find_stored(catalog, given.hf_name);
      const EnginePart part = stored == nullptr ? given : completed(given, tensor, stored_shape(*stored));
      const std::string fault = stored == nullptr
                                    ? "nobody can supply it: " + what + " has no tensor of this name" +
                                          advice_on(catalog, part.hf_name)
                                    : fault_of_part(tensor, part, *stored);
      if (!fault.empty()) {
        const std::string in_tensor = tensor.name == part.hf_name ? "" : tensor.name + ": ";
        problems.add(in_tensor + part.hf_name + ": " + fault);
        fits = false;
        continue;
      }
      if (is_empty(part.box)) continue;
      Transfer& transfer = transfers.emplace_back();
      transfer.source = static_cast<std::uint32_t>(stored - catalog.tensors.data());
      transfer.encoding.element = tensor.dtype;
      transfer.source_view = part.view == stored_shape(*stored) ? Shape() : part.view;
      transfer.source_box = part.box;
      transfer.destination = static_cast<std::uint32_t>(t);
      transfer.destination_offset = part.at;
      transfer.axes = part.axes;
      if (std::any_of(part.steps.begin(), part.steps.end(), [](std::int64_t step) { return step != 1; }))
        transfer.steps = part.steps;
    }
    if (!fits) continue;
    const std::string fault =
        fault_of_writing(tensor.shape, std::span(transfers).subspan(first, transfers.size() - first));
    if (!fault.empty()) problems.add(tensor.name + ": its parts do not write each element once: " + fault);
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "the engine's tensors do not fit " + what + "; nothing has been sent:");
  return transfers;
}

}  // namespace shardwright
