#include "storage/lora/adapter_values.h"

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/rule_pieces.h"
#include "storage/files/input_file.h"

namespace shardwright {
namespace {

/// The tensor of a name, if it is there in one piece.
const SourceTensor* find_whole(const Catalog& catalog, const std::string& name) {
  const auto chunks = catalog.find(name);
  return chunks.size() == 1 ? &chunks.front() : nullptr;
}

/// The experts of a stack of which the specs hold something; of a module, number 0.
std::vector<std::int64_t> experts_held(const LoraPair& pair, const std::vector<const TensorSpec*>& specs) {
  if (!pair.stacked()) return {0};
  std::vector<bool> held(static_cast<std::size_t>(pair.experts()), false);
  for (const TensorSpec* spec : specs) {
    for (const LocalBox& box : spec->boxes) {
      if (is_empty(box.global)) continue;
      for (std::int64_t e = 0; e < box.global.size[0]; ++e)
        held.at(static_cast<std::size_t>(box.global.offset[0] + e)) = true;
    }
  }
  std::vector<std::int64_t> experts;
  for (std::size_t e = 0; e < held.size(); ++e) {
    if (held[e]) experts.push_back(static_cast<std::int64_t>(e));
  }
  return experts;
}

/// Whether a number of these bytes, little endian, is zero; its sign may be any.
bool is_zero(const std::byte* number, std::size_t bytes) {
  const std::byte last = number[bytes - 1] & std::byte{0x7f};
  return last == std::byte{0} &&
         std::all_of(number, number + bytes - 1, [](std::byte byte) { return byte == std::byte{0}; });
}

class Values {
 public:
  Values(const Catalog& catalog, const std::string& name, const BytesOf& bytes_of)
      : catalog_(catalog), name_(name), bytes_of_(bytes_of) {}

  void expect_one_a(const FittedPair& one, const std::vector<std::int64_t>& experts) {
    const std::vector<std::string>& modules = one.modules();
    const char letter = one.place.is_parameter() && one.fit.legacy && !one.place.is_transposed ? 'B' : 'A';
    for (const std::int64_t expert : one.place.is_parameter() ? std::vector<std::int64_t>{0} : experts) {
      const std::string first = lora_tensor(of_expert(modules.front(), expert), letter);
      const SourceTensor* a = find_whole(catalog_, first);
      std::vector<std::byte> bytes;
      for (std::size_t part = 1; a != nullptr && part < modules.size(); ++part) {
        const std::string other = lora_tensor(of_expert(modules[part], expert), letter);
        const SourceTensor* b = find_whole(catalog_, other);
        if (b == nullptr || b->shape != a->shape) continue;
        if (bytes.empty()) bytes = bytes_of_(*a);
        if (a->dtype == b->dtype && bytes == bytes_of_(*b)) continue;
        faults.push_back(one.pair.a.fqn + ": " + first + " and " + other + " in " + name_ +
                         " differ; expected the same " + letter + ", as the trainer's " +
                         to_string(one.pair.a.shape) + " has one for both: train them with one" +
                         (one.place.is_parameter() ? ""
                                                   : ", or give tensors of rank " +
                                                         std::to_string(one.pair.rank() * one.place.parts) +
                                                         ", which have room for both"));
      }
    }
  }

  /// B has nothing in the rows of the pair beside its block.
  void expect_zeros(const AdapterFit& fit, const FittedPair& one) {
    const std::optional<Box> block = block_of(fit, one);
    if (!block) return;
    const std::int64_t first = block->offset[1];
    const std::int64_t last = first + block->size[1];
    const bool is_zero =
        is_zero_in_rows(one, block->offset[0], block->offset[0] + block->size[0],
                        [&](std::int64_t column) { return column < first || column >= last; });
    if (is_zero) return;
    const std::string rank = std::to_string(one.pair.rank() * one.place.of);
    faults.push_back(
        one.pair.b.fqn + ": " + lora_tensor(one.place.modules.front(), 'B') + " in " + name_ + " has rank " +
        rank + " and is not block-diagonal; expected zeros outside of the blocks, as the trainer's rank " +
        std::to_string(one.pair.rank()) + " has no room for more: give tensors of rank " + rank);
  }

  /// B of a module that joins several weights has nothing in the rows that no pair has. `pairs` are those of
  /// the module.
  void expect_nothing_else(const AdapterFit& fit, const std::vector<const FittedPair*>& pairs) {
    const FittedPair& one = *pairs.front();
    const SourceTensor* b = find_whole(catalog_, lora_tensor(one.place.modules.front(), 'B'));
    if (b == nullptr || b->shape.size() != 2) return;
    std::vector<bool> has_pair(static_cast<std::size_t>(b->shape[0]), false);
    for (const FittedPair* pair : pairs) {
      const std::optional<Box> block = block_of(fit, *pair);
      if (!block) return;
      for (std::int64_t row = 0; row < block->size[0]; ++row)
        has_pair.at(static_cast<std::size_t>(block->offset[0] + row)) = true;
    }
    for (std::size_t row = 0; row < has_pair.size(); ++row) {
      const auto at = static_cast<std::int64_t>(row);
      if (has_pair[row] || is_zero_in_rows(one, at, at + 1, [](std::int64_t) { return true; })) continue;
      faults.push_back(lora_tensor(one.place.modules.front(), 'B') + " in " + name_ +
                       ": the state dict has no LoRA tensors for row " + std::to_string(row) + " of " +
                       std::to_string(has_pair.size()) + ", one of another of the " +
                       std::to_string(one.place.of) + " weights that it joins, of which " + one.pair.b.fqn +
                       " is one; strict=False leaves it out");
      return;
    }
  }

  std::vector<std::string> faults;

 private:
  /// The rows and columns of the file's B that the pair has; nothing if the file has none of that shape.
  std::optional<Box> block_of(const AdapterFit& fit, const FittedPair& one) const {
    const std::string name = lora_tensor(one.place.modules.front(), 'B');
    const SourceTensor* b = find_whole(catalog_, name);
    if (b == nullptr) return std::nullopt;
    try {
      for (const Piece& piece : pieces_of(fit.map, one.pair.b.fqn, one.pair.b.shape, &catalog_)) {
        const Box& box = piece.correspondence->hf_box;
        if (piece.hf_name == name && b->shape == piece.hf_shape && box.size.size() == 2) return box;
      }
    } catch (const Error&) {  // told by plan_load
    }
    return std::nullopt;
  }

  /// Whether B is zero where these columns and these rows meet.
  template <class IsOfThem>
  bool is_zero_in_rows(const FittedPair& one, std::int64_t first, std::int64_t last,
                       const IsOfThem& is_of_them) const {
    const SourceTensor* b = find_whole(catalog_, lora_tensor(one.place.modules.front(), 'B'));
    if (read_ != b) bytes_ = bytes_of_(*b);
    read_ = b;
    const std::vector<std::byte>& bytes = bytes_;
    const std::int64_t columns = b->shape[1];
    const auto width = static_cast<std::size_t>(bytes_of(b->dtype));
    if (bytes.size() != static_cast<std::size_t>(volume(b->shape)) * width) return true;  // of no memory
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t column = 0; column < columns; ++column) {
        const std::byte* number = bytes.data() + static_cast<std::size_t>(row * columns + column) * width;
        if (is_of_them(column) && !is_zero(number, width)) return false;
      }
    }
    return true;
  }

  mutable const SourceTensor* read_ = nullptr;  // the last one, whose bytes these are
  mutable std::vector<std::byte> bytes_;
  const Catalog& catalog_;
  const std::string& name_;
  const BytesOf& bytes_of_;
};

}  // namespace

std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs, bool strict,
                                          const std::string& name, const BytesOf& bytes_of) {
  std::unordered_map<std::string, std::vector<const TensorSpec*>> specs_of;
  for (const TensorSpec& spec : specs) specs_of[spec.fqn].push_back(&spec);
  Values values(catalog, name, bytes_of);
  std::map<std::string, std::vector<const FittedPair*>> joined;  // by the module that joins them
  for (const FittedPair& one : fit.pairs) {
    if (one.shares_a()) values.expect_one_a(one, experts_held(one.pair, specs_of[one.pair.a.fqn]));
    if (one.file_has_zeros()) values.expect_zeros(fit, one);
    if (one.place.of > 1) joined[one.place.modules.front()].push_back(&one);
  }
  for (const auto& [module, pairs] : joined) {
    if (strict) values.expect_nothing_else(fit, pairs);
  }
  return std::move(values.faults);
}

std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs, bool strict) {
  const InputFile file(catalog.directory / catalog.files.front().name);
  return faults_of_values(fit, catalog, specs, strict, catalog.files.front().name,
                          [&](const SourceTensor& tensor) {
                            std::vector<std::byte> bytes(tensor.end - tensor.begin);
                            file.read(tensor.begin, reinterpret_cast<char*>(bytes.data()), bytes.size());
                            return bytes;
                          });
}

}  // namespace shardwright
