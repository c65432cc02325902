#include "storage/load/companions.h"

#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/problems.h"
#include "storage/boxes/scale_checks.h"

namespace shardwright {
namespace {

std::string where(const Catalog& catalog, const SourceTensor& tensor) {
  return stored_name(tensor) + " in " + catalog.files[tensor.file].name;
}

/// The numbers of a tensor of I32 or I64.
std::vector<std::int64_t> integers_in(const SourceTensor& tensor, const std::vector<std::byte>& bytes) {
  std::vector<std::int64_t> numbers;
  const bool is_long = tensor.dtype == DType::I64;
  for (std::size_t at = 0; at < bytes.size(); at += is_long ? 8 : 4) {
    std::int64_t number = 0;
    std::int32_t half = 0;
    if (is_long) {
      std::memcpy(&number, bytes.data() + at, 8);
    } else {
      std::memcpy(&half, bytes.data() + at, 4);
      number = half;
    }
    numbers.push_back(number);
  }
  return numbers;
}

/// Dimensions of a weight are few.
constexpr std::int64_t most_dimensions = 8;

}  // namespace

Companions::Companions(const LoadPlan& plan, const Catalog& catalog, OpenFiles& files) {
  Problems problems;
  const auto bytes_in = [&](const SourceTensor& tensor) {
    std::vector<std::byte> bytes(tensor.end - tensor.begin);
    const OpenFiles::Uses uses = files.use(tensor, nullptr);
    read_of(*uses.weights, tensor, tensor.begin, bytes.data(), bytes.size());
    bytes_read_ += bytes.size();
    ++requests_;
    return bytes;
  };
  std::set<std::uint32_t> seen;
  for (const Transfer& transfer : plan.transfers) {
    if (!is_packed(transfer.encoding.element) || !seen.insert(transfer.source).second) continue;
    const SourceTensor& source = catalog.tensors[transfer.source];
    if (transfer.global >= 0 && !globals_.contains(transfer.global)) {
      const SourceTensor& tensor = catalog.tensors[static_cast<std::size_t>(transfer.global)];
      float& global = globals_[transfer.global];
      std::memcpy(&global, bytes_in(tensor).data(), sizeof global);
      std::string fault = fault_of_global(transfer, global, catalog);
      if (!fault.empty()) problems.add(std::move(fault));
    }
    const std::span<const SourceTensor> told = catalog.find(source.name + "_shape");
    if (told.empty()) continue;
    const SourceTensor& tensor = told.front();
    const bool is_shape = (tensor.dtype == DType::I32 || tensor.dtype == DType::I64) &&
                          tensor.shape.size() == 1 && tensor.shape[0] <= most_dimensions;
    if (!is_shape || integers_in(tensor, bytes_in(tensor)) != source.shape) {
      problems.add(where(catalog, tensor) + ": expected " + to_string(source.shape) + ", the shape of " +
                   where(catalog, source) + " unpacked, found " +
                   (is_shape ? to_string(Shape(integers_in(tensor, bytes_in(tensor))))
                             : std::string(name_of(tensor.dtype)) + " of shape " + to_string(tensor.shape)));
    }
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "cannot decode " + catalog.directory.string() + "; nothing has been written:");
}

float Companions::global_of(const Transfer& transfer) const {
  return transfer.global < 0 ? 1.0F : globals_.at(transfer.global);
}

}  // namespace shardwright
