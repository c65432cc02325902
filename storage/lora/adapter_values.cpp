#include "storage/lora/adapter_values.h"

#include <algorithm>
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

  void expect_zeros(const FittedPair& one) {
    const std::string name = lora_tensor(one.place.modules.front(), 'B');
    const SourceTensor* b = find_whole(catalog_, name);
    const std::int64_t rows = one.pair.outputs();
    const std::int64_t rank = one.pair.rank();
    const std::int64_t columns = rank * one.place.of;
    if (b == nullptr || b->shape != Shape{rows * one.place.of, columns}) return;
    const std::vector<std::byte> bytes = bytes_of_(*b);
    const auto width = static_cast<std::size_t>(bytes_of(b->dtype));
    if (bytes.size() != static_cast<std::size_t>(volume(b->shape)) * width) return;  // of no memory
    for (std::int64_t row = one.place.part * rows; row < (one.place.part + 1) * rows; ++row) {
      for (std::int64_t column = 0; column < columns; ++column) {
        if (column / rank == one.place.part) continue;
        if (is_zero(bytes.data() + static_cast<std::size_t>(row * columns + column) * width, width)) continue;
        faults.push_back(
            one.pair.b.fqn + ": " + name + " in " + name_ + " has rank " + std::to_string(columns) +
            " and is not block-diagonal; expected zeros outside of the blocks, as the trainer's "
            "rank " +
            std::to_string(rank) + " has no room for more: give tensors of rank " + std::to_string(columns));
        return;
      }
    }
  }

  std::vector<std::string> faults;

 private:
  const Catalog& catalog_;
  const std::string& name_;
  const BytesOf& bytes_of_;
};

}  // namespace

std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs, const std::string& name,
                                          const BytesOf& bytes_of) {
  std::unordered_map<std::string, std::vector<const TensorSpec*>> specs_of;
  for (const TensorSpec& spec : specs) specs_of[spec.fqn].push_back(&spec);
  Values values(catalog, name, bytes_of);
  for (const FittedPair& one : fit.pairs) {
    if (one.shares_a()) values.expect_one_a(one, experts_held(one.pair, specs_of[one.pair.a.fqn]));
    if (one.file_has_zeros()) values.expect_zeros(one);
  }
  return std::move(values.faults);
}

std::vector<std::string> faults_of_values(const AdapterFit& fit, const Catalog& catalog,
                                          const std::vector<TensorSpec>& specs) {
  const InputFile file(catalog.directory / catalog.files.front().name);
  return faults_of_values(fit, catalog, specs, catalog.files.front().name, [&](const SourceTensor& tensor) {
    std::vector<std::byte> bytes(tensor.end - tensor.begin);
    file.read(tensor.begin, reinterpret_cast<char*>(bytes.data()), bytes.size());
    return bytes;
  });
}

}  // namespace shardwright
