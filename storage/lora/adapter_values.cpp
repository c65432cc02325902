#include "storage/lora/adapter_values.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "planner/error.h"
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
    for (const std::int64_t expert : experts) {
      const std::string first = lora_tensor(of_expert(one.place.modules.front(), expert), 'A');
      const SourceTensor* a = find_whole(catalog_, first);
      std::vector<std::byte> bytes;
      for (std::size_t part = 1; a != nullptr && part < one.place.modules.size(); ++part) {
        const std::string other = lora_tensor(of_expert(one.place.modules[part], expert), 'A');
        const SourceTensor* b = find_whole(catalog_, other);
        if (b == nullptr || b->shape != a->shape) continue;
        if (bytes.empty()) bytes = bytes_of_(*a);
        if (a->dtype == b->dtype && bytes == bytes_of_(*b)) continue;
        faults.push_back(one.pair.a.fqn + ": " + first + " and " + other + " in " + name_ +
                         " differ; expected the same A, as the trainer's " + to_string(one.pair.a.shape) +
                         " has one for both: train them with one, or give tensors of rank " +
                         std::to_string(one.pair.rank() * one.place.parts) + ", which have room for both");
      }
    }
  }

  /// B has nothing in the rows of the pair beside its block.
  void expect_zeros(const FittedPair& one) {
    const std::int64_t rank = one.pair.rank();
    const std::int64_t columns = rank * one.place.of;
    const std::string name = lora_tensor(one.place.modules.front(), 'B');
    const bool is_zero = is_zero_in_rows(
        one, one.place.part, columns, [&](std::int64_t column) { return column / rank != one.place.part; });
    if (is_zero) return;
    faults.push_back(
        one.pair.b.fqn + ": " + name + " in " + name_ + " has rank " + std::to_string(columns) +
        " and is not block-diagonal; expected zeros outside of the blocks, as the trainer's rank " +
        std::to_string(rank) + " has no room for more: give tensors of rank " + std::to_string(columns));
  }

  /// B has nothing in the rows of a part that no pair has.
  void expect_nothing_in(const FittedPair& one, std::int64_t part) {
    const std::int64_t columns = file_rank(one.pair, one.place, one.fit.spread);
    if (is_zero_in_rows(one, part, columns, [](std::int64_t) { return true; })) return;
    faults.push_back(lora_tensor(one.place.modules.front(), 'B') + " in " + name_ +
                     ": the state dict has no LoRA tensors for part " + std::to_string(part + 1) +
                     " of the " + std::to_string(one.place.of) + " that it joins, of which " +
                     one.pair.b.fqn + " is one; strict=False leaves it out");
  }

  std::vector<std::string> faults;

 private:
  /// Whether B, if it has the shape that the rules say, is zero where these columns and the rows of a part
  /// meet.
  template <class IsOfThem>
  bool is_zero_in_rows(const FittedPair& one, std::int64_t part, std::int64_t columns,
                       const IsOfThem& is_of_them) const {
    const SourceTensor* b = find_whole(catalog_, lora_tensor(one.place.modules.front(), 'B'));
    const std::int64_t rows = one.pair.outputs();
    if (b == nullptr || b->shape != Shape{rows * one.place.of, columns}) return true;
    const std::vector<std::byte> bytes = bytes_of_(*b);
    const auto width = static_cast<std::size_t>(bytes_of(b->dtype));
    if (bytes.size() != static_cast<std::size_t>(volume(b->shape)) * width) return true;  // of no memory
    for (std::int64_t row = part * rows; row < (part + 1) * rows; ++row) {
      for (std::int64_t column = 0; column < columns; ++column) {
        const std::byte* number = bytes.data() + static_cast<std::size_t>(row * columns + column) * width;
        if (is_of_them(column) && !is_zero(number, width)) return false;
      }
    }
    return true;
  }

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
  std::map<std::string, std::set<std::int64_t>> parts_of;  // of modules that join several, those with pairs
  for (const FittedPair& one : fit.pairs) {
    if (one.shares_a()) values.expect_one_a(one, experts_held(one.pair, specs_of[one.pair.a.fqn]));
    if (one.file_has_zeros()) values.expect_zeros(one);
    if (one.place.of > 1) parts_of[one.place.modules.front()].insert(one.place.part);
  }
  std::set<std::string> seen;
  for (const FittedPair& one : fit.pairs) {
    if (!strict || one.place.of == 1 || !seen.insert(one.place.modules.front()).second) continue;
    for (std::int64_t part = 0; part < one.place.of; ++part) {
      if (!parts_of[one.place.modules.front()].contains(part)) values.expect_nothing_in(one, part);
    }
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
