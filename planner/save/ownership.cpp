#include "planner/save/ownership.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// Below this many bytes a box is written by one rank: cutting it would cost more requests than it saves.
constexpr double smallest_cut = 64 * 1024;

/// A box and the ranks that hold it.
struct Replicas {
  const SavedTensor* tensor = nullptr;
  Box box;
  double bytes = 0;
  std::vector<std::size_t> ranks;  ///< sorted, each once
};

std::string description(const SavedTensor& tensor) {
  return std::string(name_of(tensor.dtype)) + " " + to_string(tensor.shape);
}

class Dealer {
 public:
  Dealer(std::size_t ranks, const std::function<std::size_t(const SavedTensor&, const Box&)>& cut)
      : load_(ranks, 0), shares_(ranks), index_(ranks), cut_(cut) {}

  void give(std::size_t rank, const SavedTensor& tensor, Box box, double bytes) {
    load_[rank] += bytes;
    const auto [entry, is_new] = index_[rank].try_emplace(tensor.fqn, shares_[rank].size());
    if (is_new) shares_[rank].push_back({tensor, {}});
    shares_[rank][entry->second].boxes.push_back(std::move(box));
  }

  /// Fills up the ranks that have least, as water fills a basin.
  void deal(const Replicas& replicas) {
    std::vector<std::size_t> ranks = replicas.ranks;
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](std::size_t a, std::size_t b) { return load_[a] < load_[b]; });
    const std::size_t dimension = cut_(*replicas.tensor, replicas.box);
    const std::int64_t slices = dimension < replicas.box.size.size() ? replicas.box.size[dimension] : 1;
    if (replicas.bytes < 2 * smallest_cut || slices < 2) {
      return give(ranks.front(), *replicas.tensor, replicas.box, replicas.bytes);
    }
    const double per_slice = replicas.bytes / static_cast<double>(slices);
    std::int64_t done = 0;
    const double level = level_of(ranks, replicas.bytes);
    double filled = 0;
    for (std::size_t i = 0; i < ranks.size() && done < slices; ++i) {
      filled += std::max(0.0, level - load_[ranks[i]]);
      std::int64_t end = std::min(slices, static_cast<std::int64_t>(std::llround(filled / per_slice)));
      if (i + 1 == ranks.size()) end = slices;
      if (static_cast<double>(slices - end) * per_slice < smallest_cut) end = slices;
      if (static_cast<double>(end - done) * per_slice < smallest_cut && end < slices) continue;
      Box part = replicas.box;
      part.offset[dimension] += done;
      part.size[dimension] = end - done;
      if (end > done) give(ranks[i], *replicas.tensor, part, static_cast<double>(end - done) * per_slice);
      done = end;
    }
  }

  std::vector<Holdings> shares() { return std::move(shares_); }

 private:
  /// How full each of the ranks (sorted by load) is once so many bytes have been added to the emptiest.
  double level_of(const std::vector<std::size_t>& ranks, double bytes) const {
    double sum = bytes;
    for (std::size_t count = 1; count <= ranks.size(); ++count) {
      sum += load_[ranks[count - 1]];
      const double level = sum / static_cast<double>(count);
      if (count == ranks.size() || level <= load_[ranks[count]]) return level;
    }
    return sum;
  }

  std::vector<double> load_;
  std::vector<Holdings> shares_;
  std::vector<std::unordered_map<std::string, std::size_t>> index_;
  const std::function<std::size_t(const SavedTensor&, const Box&)>& cut_;
};

/// The boxes of a tensor, each once, with the ranks that hold it.
std::vector<Replicas> distinct_boxes(const std::vector<Holdings>& ranks) {
  std::vector<Replicas> all;
  std::map<std::pair<std::string, std::pair<Shape, Shape>>, std::size_t> index;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    for (const HeldBoxes& held : ranks[rank]) {
      for (const Box& box : held.boxes) {
        if (is_empty(box)) continue;
        const auto [entry, is_new] = index.try_emplace({held.tensor.fqn, {box.offset, box.size}}, all.size());
        if (is_new) all.push_back({&held.tensor, box, 0, {}});
        std::vector<std::size_t>& holders = all[entry->second].ranks;
        if (holders.empty() || holders.back() != rank) holders.push_back(rank);
      }
    }
  }
  return all;
}

void prove_coverage(const std::vector<SavedTensor>& tensors, const std::vector<Replicas>& boxes) {
  std::unordered_map<std::string, std::vector<Box>> by_tensor;
  for (const Replicas& replicas : boxes) by_tensor[replicas.tensor->fqn].push_back(replicas.box);
  Problems problems;
  for (const SavedTensor& tensor : tensors) {
    const std::string fault = tiling_fault(whole(tensor.shape), by_tensor[tensor.fqn]);
    if (!fault.empty())
      problems.add(tensor.fqn + ": the parts that the ranks hold do not make it up: " + fault);
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot save these tensors; nothing has been written:");
}

}  // namespace

Holdings holdings_of(const std::vector<TensorSpec>& specs) {
  Holdings holdings;
  for (const TensorSpec& spec : specs) {
    HeldBoxes held{{spec.fqn, spec.dtype, spec.global_shape}, {}};
    for (const LocalBox& box : spec.boxes) held.boxes.push_back(box.global);
    holdings.push_back(std::move(held));
  }
  return holdings;
}

std::vector<SavedTensor> all_tensors(const std::vector<Holdings>& ranks) {
  std::vector<SavedTensor> tensors;
  std::unordered_map<std::string, std::pair<std::size_t, std::size_t>> seen;  // index, rank
  Problems problems;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    for (const HeldBoxes& held : ranks[rank]) {
      const auto [entry, is_new] = seen.try_emplace(held.tensor.fqn, std::pair{tensors.size(), rank});
      if (is_new) {
        tensors.push_back(held.tensor);
      } else if (const SavedTensor& first = tensors[entry->second.first]; first != held.tensor) {
        problems.add(first.fqn + ": " + description(first) + " on rank " +
                     std::to_string(entry->second.second) + ", but " + description(held.tensor) +
                     " on rank " + std::to_string(rank));
      }
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot save these tensors; nothing has been written:");
  return tensors;
}

std::vector<Holdings> deal_out(const std::vector<Holdings>& ranks,
                               const std::function<double(const SavedTensor&)>& bytes,
                               const std::function<std::size_t(const SavedTensor&, const Box&)>& cut) {
  std::vector<Replicas> boxes = distinct_boxes(ranks);
  prove_coverage(all_tensors(ranks), boxes);
  for (Replicas& box : boxes) box.bytes = bytes(*box.tensor) * static_cast<double>(volume(box.box.size));
  Dealer dealer(ranks.size(), cut);
  std::vector<const Replicas*> shared;
  for (const Replicas& box : boxes) {
    if (box.ranks.size() == 1) {
      dealer.give(box.ranks.front(), *box.tensor, box.box, box.bytes);
    } else {
      shared.push_back(&box);
    }
  }
  // Those that few ranks hold first, and of these the large ones, so that what is left evens out the rest.
  std::stable_sort(shared.begin(), shared.end(), [](const Replicas* a, const Replicas* b) {
    return a->ranks.size() != b->ranks.size() ? a->ranks.size() < b->ranks.size() : a->bytes > b->bytes;
  });
  for (const Replicas* box : shared) dealer.deal(*box);
  return dealer.shares();
}

bool holds(const TensorSpec& spec, const Box& box) {
  return std::any_of(spec.boxes.begin(), spec.boxes.end(),
                     [&](const LocalBox& local) { return intersection(local.global, box) == box; });
}

TensorSpec part_of(const TensorSpec& spec, const Box& box) {
  for (const LocalBox& local : spec.boxes) {
    if (intersection(local.global, box) != box) continue;
    TensorSpec part = spec;
    part.local_shape = box.size;
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < box.size.size(); ++d) {
      offset += (local.local_offset[d] + box.offset[d] - local.global.offset[d]) * spec.local_strides[d];
    }
    if (part.data != nullptr) part.data = static_cast<std::byte*>(part.data) + offset * bytes_of(spec.dtype);
    part.boxes = {{box, Shape(box.size.size(), 0)}};
    return part;
  }
  throw std::logic_error(spec.fqn + ": this rank does not hold " + to_string(box));
}

}  // namespace shardwright
