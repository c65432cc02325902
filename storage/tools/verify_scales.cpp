#include "storage/tools/verify_scales.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "planner/error.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "storage/boxes/scale_checks.h"
#include "storage/count_progress.h"
#include "storage/files/input_file.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

constexpr std::uint64_t bytes_at_a_time = std::uint64_t{1} << 20;

/// Bytes of whole scales that a weight of this shape needs. Of chunks, or of matrices of a stack, it is told
/// of none which of their rows are to spare: all are looked at.
std::uint64_t bytes_needed(const Encoding& encoding, const Shape& weight,
                           std::span<const SourceTensor> scales) {
  if (scales.size() > 1 || scales.front().shape.size() > 2) return std::numeric_limits<std::uint64_t>::max();
  return static_cast<std::uint64_t>(volume(scale_shape_of(encoding, weight)) *
                                    bytes_of(scales.front().dtype));
}

/// The first fault of one of them; empty if it has none.
std::string fault_of(const Catalog& catalog, const StoredScales& scales, Progress* progress) {
  const SourceTensor& tensor = catalog.tensors[scales.tensor];
  const SourceFile& known = catalog.files[tensor.file];
  const InputFile file(catalog.path_of(tensor), known.size, known.version);
  const auto bytes_each = static_cast<std::uint64_t>(bytes_of(tensor.dtype));
  std::vector<std::byte> buffer;
  const std::uint64_t end = tensor.begin + scales.bytes;
  for (std::uint64_t begin = tensor.begin; begin < end; begin += buffer.size()) {
    buffer.resize(std::min(bytes_at_a_time, end - begin));
    file.read(begin, reinterpret_cast<char*>(buffer.data()), buffer.size());
    count_done(progress, buffer.size());
    if (scales.is_global) {
      float global = 0;
      for (std::size_t at = 0; at + sizeof global <= buffer.size(); at += sizeof global) {
        std::memcpy(&global, buffer.data() + at, sizeof global);
        std::string fault = fault_of_global(global, scales.product, tensor, catalog);
        if (!fault.empty()) return fault;
      }
      continue;
    }
    const auto count = static_cast<std::int64_t>(buffer.size() / bytes_each);
    const std::optional<OddScale> odd = odd_scale_in(tensor.dtype, buffer.data(), count);
    if (!odd) continue;
    const std::int64_t index = static_cast<std::int64_t>((begin - tensor.begin) / bytes_each) + odd->index;
    return stored_name(tensor) + " in " + known.name + ": scale number " + std::to_string(index) +
           " of the tensor is " + odd->text +
           "; expected numbers of 0 or more, which loads take alone; download the file again";
  }
  return "";
}

}  // namespace

std::vector<StoredScales> scales_in(const Catalog& catalog) {
  std::vector<StoredScales> found;
  const auto add = [&](std::span<const SourceTensor> chunks, Product product, bool is_global,
                       std::uint64_t most_bytes) {
    for (const SourceTensor& chunk : chunks)
      found.push_back({static_cast<std::size_t>(&chunk - catalog.tensors.data()), product, is_global,
                       std::min(chunk.end - chunk.begin, most_bytes)});
  };
  constexpr std::uint64_t all = std::numeric_limits<std::uint64_t>::max();
  for (const SourceTensor& tensor : catalog.tensors) {
    const std::span<const SourceTensor> weight = catalog.find(tensor.name);
    const std::span<const SourceTensor> scales = scales_of(catalog, tensor.name);
    if (&weight.front() != &tensor || scales.empty()) continue;
    try {
      const Encoding encoding = encoding_of(catalog, weight);
      if (!encoding.scaled) continue;
      add(scales, encoding.product, false, bytes_needed(encoding, Catalog::global_shape(weight), scales));
      add(global_scale_of(catalog, encoding, tensor.name), encoding.product, true, all);
    } catch (const Error& error) {
      if (error.kind != ErrorKind::mismatch) throw;
    }
  }
  return found;
}

std::vector<ScaleFault> faults_of_scales(const Catalog& catalog, const std::vector<StoredScales>& scales,
                                         int threads, Progress* progress) {
  std::vector<ScaleFault> faults;
  std::mutex mutex;
  for_each_index(scales.size(), threads, [&](std::size_t i) {
    std::string fault = fault_of(catalog, scales[i], progress);
    if (fault.empty()) return;
    const std::lock_guard lock(mutex);
    faults.push_back({scales[i].tensor, std::move(fault)});
  });
  std::sort(faults.begin(), faults.end(),
            [](const ScaleFault& a, const ScaleFault& b) { return a.tensor < b.tensor; });
  return faults;
}

}  // namespace shardwright
