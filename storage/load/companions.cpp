#include "storage/load/companions.h"

#include <cstring>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/problems.h"
#include "storage/boxes/scale_checks.h"
#include "storage/threads.h"

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
constexpr std::uint64_t most_bytes = 8 * most_dimensions;

/// Whether a tensor, or the chunk of one, may hold the shape of a weight.
bool is_shape_like(const SourceTensor& tensor) {
  return (tensor.dtype == DType::I32 || tensor.dtype == DType::I64) && tensor.shape.size() == 1 &&
         tensor.shape[0] <= most_dimensions;
}

/// A small tensor to read, whole, and a transfer that it is for.
struct Wanted {
  const Transfer* transfer;
  std::span<const SourceTensor> chunks;
  std::vector<std::byte> bytes;
};

/// The shape that is told of each packed weight, and each global scale.
std::vector<Wanted> wanted_of(const LoadPlan& plan, const Catalog& catalog) {
  std::vector<Wanted> wanted;
  std::set<std::int64_t> seen;
  const auto want = [&](const Transfer& transfer, std::span<const SourceTensor> chunks) {
    if (seen.insert(chunks.data() - catalog.tensors.data()).second) wanted.push_back({&transfer, chunks, {}});
  };
  std::uint32_t previous = 0;
  bool is_first = true;
  for (const Transfer& transfer : plan.transfers) {
    if (!is_packed(transfer.encoding.element)) continue;
    if (transfer.global >= 0)
      want(transfer, std::span(catalog.tensors).subspan(static_cast<std::size_t>(transfer.global), 1));
    if (!is_first && transfer.source == previous)
      continue;  // a plan's transfers of one source follow each other
    is_first = false;
    previous = transfer.source;
    const auto told = catalog.find(catalog.tensors[transfer.source].name + "_shape");
    if (!told.empty()) want(transfer, told);
  }
  return wanted;
}

/// Why a tensor does not tell the shape of the weight that it belongs to; empty if it does.
std::string fault_of_shape(const Wanted& told, const Catalog& catalog) {
  const SourceTensor& tensor = told.chunks.front();
  const SourceTensor& chunk = catalog.tensors[told.transfer->source];
  const Shape shape = Catalog::global_shape(catalog.find(chunk.name));
  const bool is_shape = is_shape_like(tensor);
  const Shape found = is_shape ? integers_in(tensor, told.bytes) : Shape();
  if (is_shape && found == shape) return "";
  return where(catalog, tensor) + ": expected " + to_string(shape) + ", the shape of " +
         where(catalog, chunk) + " unpacked, found " +
         (is_shape ? to_string(found)
                   : std::string(name_of(tensor.dtype)) + " of shape " + to_string(tensor.shape));
}

}  // namespace

Companions::Companions(const LoadPlan& plan, const Catalog& catalog, OpenFiles& files, int threads) {
  std::vector<Wanted> wanted = wanted_of(plan, catalog);
  for_each_index(wanted.size(), threads, [&](std::size_t i) {
    for (const SourceTensor& chunk : wanted[i].chunks) {
      const std::size_t size = chunk.end - chunk.begin;
      std::vector<std::byte>& bytes = wanted[i].bytes;
      if (size > most_bytes) return;  // it is no companion, which is told below
      bytes.resize(bytes.size() + size);
      const OpenFiles::Uses uses = files.use(chunk, nullptr);
      read_of(*uses.weights, chunk, chunk.begin, bytes.data() + bytes.size() - size, size);
    }
  });
  Problems problems;
  for (const Wanted& one : wanted) {
    bytes_read_ += one.bytes.size();
    requests_ += one.bytes.empty() ? 0 : one.chunks.size();
    const std::int64_t index = one.chunks.data() - catalog.tensors.data();
    std::string fault;
    if (index == one.transfer->global) {
      float& global = globals_[index];
      std::memcpy(&global, one.bytes.data(), sizeof global);
      fault = fault_of_global(global, one.transfer->encoding.product, one.chunks.front(), catalog);
    } else {
      fault = fault_of_shape(one, catalog);
    }
    if (!fault.empty()) problems.add(std::move(fault));
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "cannot decode " + catalog.directory.string() + "; nothing has been written:");
}

float Companions::global_of(const Transfer& transfer) const {
  return transfer.global < 0 ? 1.0F : globals_.at(transfer.global);
}

}  // namespace shardwright
