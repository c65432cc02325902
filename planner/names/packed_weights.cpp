#include "planner/names/packed_weights.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace shardwright {
namespace {

/// What a tensor is seen as.
struct Seen {
  std::size_t tensor;
  std::string name;
  DType dtype;
  Shape shape;
};

std::optional<std::string> without_ending(std::string_view name, std::string_view ending) {
  if (!name.ends_with(ending) || name.size() == ending.size()) return std::nullopt;
  return std::string(name.substr(0, name.size() - ending.size()));
}

Shape with_last(Shape shape, std::int64_t times) {
  if (shape.back() > INT64_MAX / times) return {};
  shape.back() *= times;
  return shape;
}

class Looker {
 public:
  explicit Looker(const Catalog& catalog) : catalog_(catalog) {}

  std::vector<Seen> all() {
    for (std::size_t t = 0; t < catalog_.tensors.size(); ++t) look_at(t);
    return std::move(seen_);
  }

  /// What one tensor, and what belongs to it, is seen as.
  std::vector<Seen> one(const SourceTensor& tensor) {
    look_at(index_of(tensor));
    return std::move(seen_);
  }

 private:
  /// The tensor of that name, if it is whole and of one of these dtypes; null if not.
  const SourceTensor* whole_tensor(const std::string& name, std::initializer_list<DType> dtypes) const {
    const auto chunks = catalog_.find(name);
    if (chunks.size() != 1 || std::find(dtypes.begin(), dtypes.end(), chunks[0].dtype) == dtypes.end())
      return nullptr;
    const auto& offset = chunks[0].offset;
    return std::all_of(offset.begin(), offset.end(), [](std::int64_t o) { return o == 0; }) ? &chunks[0]
                                                                                            : nullptr;
  }

  bool is_free(const std::string& name) const { return catalog_.find(name).empty(); }

  void see(std::size_t tensor, std::string name, DType dtype, Shape shape) {
    if (!shape.empty()) seen_.push_back({tensor, std::move(name), dtype, std::move(shape)});
  }

  void look_at(std::size_t t) {
    const SourceTensor& tensor = catalog_.tensors[t];
    if (tensor.stored != nullptr || tensor.shape.size() < 2 ||
        whole_tensor(tensor.name, {tensor.dtype}) == nullptr)
      return;
    if (const auto weight = without_ending(tensor.name, "_packed"); weight && weight->ends_with(".weight")) {
      if (!is_free(*weight)) return;
      if (tensor.dtype == DType::U8) see(t, *weight, DType::F4, with_last(tensor.shape, 2));
      if (tensor.dtype == DType::I32) see(t, *weight, DType::I4, with_last(tensor.shape, 8));
    } else if (const auto stem = without_ending(tensor.name, "_blocks")) {
      const SourceTensor* const scales = whole_tensor(*stem + "_scales", {DType::U8, DType::F8_E8M0});
      if (tensor.dtype != DType::U8 || scales == nullptr || tensor.shape.back() != 16 || !is_free(*stem))
        return;
      Shape shape(tensor.shape.begin(), tensor.shape.end() - 1);
      see(t, *stem, DType::F4, with_last(std::move(shape), 32));
      see(index_of(*scales), *stem + "_scale_inv", scales->dtype, scales->shape);
    } else if (const auto module = without_ending(tensor.name, ".weight")) {
      look_at_module(t, *module);
    }
  }

  void look_at_module(std::size_t t, const std::string& module) {
    const SourceTensor& tensor = catalog_.tensors[t];
    const bool is_plain = is_free(tensor.name + "_scale_inv");
    if (tensor.dtype == DType::U8 && is_plain &&
        whole_tensor(tensor.name + "_scale", {DType::F8_E4M3, DType::U8, DType::F8_E8M0}) != nullptr) {
      return see(t, tensor.name, DType::F4, with_last(tensor.shape, 2));
    }
    if (!is_plain || !is_free(tensor.name + "_scale")) return;
    const bool is_fp4 = tensor.dtype == DType::I8;
    const SourceTensor* const scales = is_fp4 ? whole_tensor(module + ".scale", {DType::F8_E8M0})
                                       : tensor.dtype == DType::F8_E4M3
                                           ? whole_tensor(module + ".scale", {DType::F8_E8M0, DType::F32})
                                           : nullptr;
    if (scales == nullptr) return;
    if (is_fp4) see(t, tensor.name, DType::F4, with_last(tensor.shape, 2));
    see(index_of(*scales), tensor.name + "_scale", scales->dtype, scales->shape);
  }

  std::size_t index_of(const SourceTensor& tensor) const {
    return static_cast<std::size_t>(&tensor - catalog_.tensors.data());
  }

  const Catalog& catalog_;
  std::vector<Seen> seen_;
};

/// By name and offset, checksums with them.
void sort_tensors(Catalog& catalog) {
  std::vector<std::size_t> order(catalog.tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const SourceTensor& left = catalog.tensors[a];
    const SourceTensor& right = catalog.tensors[b];
    return std::tie(left.name, left.offset) < std::tie(right.name, right.offset);
  });
  std::vector<SourceTensor> tensors;
  std::vector<RowChecksums> checksums;
  for (const std::size_t t : order) {
    tensors.push_back(std::move(catalog.tensors[t]));
    if (catalog.checksums != nullptr) checksums.push_back((*catalog.checksums)[t]);
  }
  catalog.tensors = std::move(tensors);
  if (catalog.checksums != nullptr)
    catalog.checksums = std::make_shared<const std::vector<RowChecksums>>(std::move(checksums));
}

}  // namespace

void see_packed_weights(Catalog& catalog) {
  std::vector<Seen> all = Looker(catalog).all();
  if (all.empty()) return;
  for (Seen& seen : all) {
    SourceTensor& tensor = catalog.tensors[seen.tensor];
    tensor.stored = std::make_shared<const StoredForm>(StoredForm{tensor.name, tensor.dtype, tensor.shape});
    tensor.name = std::move(seen.name);
    tensor.dtype = seen.dtype;
    tensor.shape = std::move(seen.shape);
    tensor.offset.assign(tensor.shape.size(), 0);
  }
  sort_tensors(catalog);
}

bool is_as_stored(const Catalog& catalog) {
  return std::all_of(catalog.tensors.begin(), catalog.tensors.end(),
                     [](const SourceTensor& tensor) { return tensor.stored == nullptr; });
}

std::string weight_in(const Catalog& stored, const SourceTensor& tensor) {
  for (Seen& seen : Looker(stored).one(tensor)) {
    if (is_packed(seen.dtype)) return std::move(seen.name);
  }
  return "";
}

std::int64_t elements_of_unit(const SourceTensor& tensor) {
  if (!is_packed(tensor.dtype)) return 1;
  const DType unit = tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
  return is_packed(unit) ? 2 : 2 * bytes_of(unit);
}

namespace {

/// Whether blocks of a row are a dimension of their own in the file, as gpt-oss has them.
bool has_blocks(const SourceTensor& tensor) {
  return tensor.stored != nullptr && tensor.stored->shape.size() > tensor.shape.size();
}

/// Elements of a row that are one index in the file: of its last dimension, or of the one of the blocks.
std::int64_t elements_of_index(const SourceTensor& tensor) {
  return elements_of_unit(tensor) * (has_blocks(tensor) ? tensor.stored->shape.back() : 1);
}

}  // namespace

Box whole_in_file(const SourceTensor& tensor, Box box) {
  if (box.size.empty() || is_empty(box)) return box;
  const std::int64_t elements = elements_of_index(tensor);
  const std::int64_t end = (box.offset.back() + box.size.back() + elements - 1) / elements * elements;
  box.offset.back() = box.offset.back() / elements * elements;
  box.size.back() = end - box.offset.back();
  return box;
}

Shape offset_in_file(const SourceTensor& tensor, const Shape& offset) {
  Shape stored = offset;
  if (!stored.empty()) stored.back() /= elements_of_index(tensor);
  if (has_blocks(tensor)) stored.push_back(0);
  return stored;
}

Box box_in_file(const SourceTensor& tensor, const Box& box) {
  Box stored{offset_in_file(tensor, box.offset), offset_in_file(tensor, box.size)};
  if (has_blocks(tensor)) stored.size.back() = tensor.stored->shape.back();
  return stored;
}

Catalog as_stored(const Catalog& catalog) {
  Catalog stored = catalog;
  if (is_as_stored(catalog)) return stored;
  for (SourceTensor& tensor : stored.tensors) {
    if (tensor.stored == nullptr) continue;
    const std::shared_ptr<const StoredForm> form = std::move(tensor.stored);
    tensor.stored = nullptr;
    tensor.name = form->name;
    tensor.dtype = form->dtype;
    tensor.shape = form->shape;
    tensor.offset.assign(tensor.shape.size(), 0);
  }
  sort_tensors(stored);
  return stored;
}

}  // namespace shardwright
