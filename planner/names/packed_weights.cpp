#include "planner/names/packed_weights.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace shardwright {
namespace {

/// What a tensor (or chunk) is seen as.
struct Seen {
  std::size_t tensor;
  std::string name;
  DType dtype;
  Shape shape;
  Shape offset;
};

using Chunks = std::span<const SourceTensor>;

std::optional<std::string> without_ending(std::string_view name, std::string_view ending) {
  if (!name.ends_with(ending) || name.size() == ending.size()) return std::nullopt;
  return std::string(name.substr(0, name.size() - ending.size()));
}

/// Sizes or offsets of a tensor whose last dimension has so many elements in each index; empty: too many.
Shape with_last(Shape shape, std::int64_t times) {
  if (shape.back() > INT64_MAX / times) return {};
  shape.back() *= times;
  return shape;
}

/// The same where the elements of an index are a dimension of their own, behind the others.
Shape with_blocks(const Shape& shape, std::int64_t times) {
  return with_last(Shape(shape.begin(), shape.end() - 1), times);
}

class Looker {
 public:
  explicit Looker(const Catalog& catalog) : catalog_(catalog) {}

  std::vector<Seen> all() {
    for (std::size_t t = 0; t < catalog_.tensors.size();) {
      const Chunks chunks = catalog_.find(catalog_.tensors[t].name);
      look_at(chunks);
      t += chunks.size();
    }
    return std::move(seen_);
  }

  /// What one tensor, and what belongs to it, is seen as.
  std::vector<Seen> one(const std::string& name) {
    look_at(catalog_.find(name));
    return std::move(seen_);
  }

 private:
  /// The chunks of the tensor of that name, if all are of one of these dtypes.
  Chunks chunks_of(const std::string& name, std::initializer_list<DType> dtypes) const {
    const Chunks chunks = catalog_.find(name);
    const bool all = std::all_of(chunks.begin(), chunks.end(), [&](const SourceTensor& chunk) {
      return std::find(dtypes.begin(), dtypes.end(), chunk.dtype) != dtypes.end();
    });
    return all ? chunks : Chunks{};
  }

  bool is_free(const std::string& name) const { return catalog_.find(name).empty(); }

  /// Several elements in each index of the last dimension.
  void see_elements(Chunks chunks, const std::string& name, DType dtype, std::int64_t times) {
    see(chunks, name, dtype, [&](const Shape& shape) { return with_last(shape, times); });
  }

  /// Under another name.
  void see_as(Chunks chunks, const std::string& name) {
    see(chunks, name, chunks.front().dtype, [](const Shape& shape) { return shape; });
  }

  template <class Change>
  void see(Chunks chunks, const std::string& name, DType dtype, const Change& change) {
    std::vector<Seen> all;
    for (const SourceTensor& chunk : chunks) {
      const auto tensor = static_cast<std::size_t>(&chunk - catalog_.tensors.data());
      all.push_back({tensor, name, dtype, change(chunk.shape), change(chunk.offset)});
      const bool is_counted = all.back().shape.size() == all.back().offset.size() &&
                              all.back().shape.empty() == chunk.shape.empty();
      if (!is_counted) return;  // more elements than 63 bits count
    }
    std::move(all.begin(), all.end(), std::back_inserter(seen_));
  }

  void look_at(Chunks chunks) {
    const SourceTensor& tensor = chunks.front();
    if (tensor.stored != nullptr || tensor.shape.size() < 2 || chunks_of(tensor.name, {tensor.dtype}).empty())
      return;
    if (const auto weight = without_ending(tensor.name, "_packed"); weight && weight->ends_with(".weight")) {
      if (!is_free(*weight)) return;
      if (tensor.dtype == DType::U8) see_elements(chunks, *weight, DType::F4, 2);
      if (tensor.dtype == DType::I32) see_elements(chunks, *weight, DType::I4, 8);
    } else if (const auto stem = without_ending(tensor.name, "_blocks")) {
      look_at_blocks(chunks, *stem);
    } else if (const auto module = without_ending(tensor.name, ".weight")) {
      look_at_module(chunks, *module);
    }
  }

  void look_at_blocks(Chunks chunks, const std::string& stem) {
    constexpr std::int64_t bytes = 16;
    const Chunks scales = chunks_of(stem + "_scales", {DType::U8, DType::F8_E8M0});
    const bool are_whole = std::all_of(chunks.begin(), chunks.end(), [](const SourceTensor& chunk) {
      return (chunk.offset.back() == 0 && chunk.shape.back() == bytes) || volume(chunk.shape) == 0;
    });
    if (chunks.front().dtype != DType::U8 || scales.empty() || !are_whole || !is_free(stem)) return;
    see(chunks, stem, DType::F4, [](const Shape& shape) { return with_blocks(shape, 2 * bytes); });
    see_as(scales, stem + "_scale_inv");
  }

  void look_at_module(Chunks chunks, const std::string& module) {
    const SourceTensor& tensor = chunks.front();
    const bool is_plain = is_free(tensor.name + "_scale_inv");
    if (tensor.dtype == DType::U8 && is_plain &&
        !chunks_of(tensor.name + "_scale", {DType::F8_E4M3, DType::U8, DType::F8_E8M0}).empty()) {
      return see_elements(chunks, tensor.name, DType::F4, 2);
    }
    if (!is_plain || !is_free(tensor.name + "_scale")) return;
    const bool is_fp4 = tensor.dtype == DType::I8;
    Chunks scales;
    if (is_fp4) scales = chunks_of(module + ".scale", {DType::F8_E8M0});
    if (tensor.dtype == DType::F8_E4M3) scales = chunks_of(module + ".scale", {DType::F8_E8M0, DType::F32});
    if (scales.empty()) return;
    if (is_fp4) see_elements(chunks, tensor.name, DType::F4, 2);
    see_as(scales, tensor.name + "_scale");
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
    tensor.offset = std::move(seen.offset);
  }
  sort_tensors(catalog);
}

bool is_as_stored(const Catalog& catalog) {
  return std::all_of(catalog.tensors.begin(), catalog.tensors.end(),
                     [](const SourceTensor& tensor) { return tensor.stored == nullptr; });
}

std::string weight_in(const Catalog& stored, const SourceTensor& tensor) {
  for (Seen& seen : Looker(stored).one(tensor.name)) {
    if (is_packed(seen.dtype)) return std::move(seen.name);
  }
  return "";
}

std::int64_t elements_of_unit(const SourceTensor& tensor) {
  if (!is_packed(tensor.dtype)) return 1;
  const DType unit = tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
  return is_packed(unit) ? 2 : 2 * bytes_of(unit);
}

bool has_blocks(const SourceTensor& tensor) {
  return tensor.stored != nullptr && tensor.stored->shape.size() > tensor.shape.size();
}

namespace {

/// Elements of a row that are one index in the file: of its last dimension, or of the one of the blocks.
std::int64_t elements_of_index(const SourceTensor& tensor) {
  const std::int64_t units = has_blocks(tensor) ? tensor.stored->shape.back() : 1;
  return elements_of_unit(tensor) * std::max<std::int64_t>(1, units);
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
    tensor.offset = offset_in_file(tensor, tensor.offset);
    const std::shared_ptr<const StoredForm> form = std::move(tensor.stored);
    tensor.stored = nullptr;
    tensor.name = form->name;
    tensor.dtype = form->dtype;
    tensor.shape = form->shape;
  }
  sort_tensors(stored);
  return stored;
}

}  // namespace shardwright
