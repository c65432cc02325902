#include "planner/save/dealing.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace shardwright {
namespace {

/// Below this many bytes a box is written by one rank: cutting it would cost more requests than it saves.
constexpr double smallest_cut = 64 * 1024;

void leave(const Owner& owner, Dealt& dealt) {
  auto& left = dealt.left_to_others[owner.state][owner.holding];
  for (std::uint32_t i = 0; i < owner.items; ++i) left.push_back(owner.item + i);
}

void sort_items(Dealt& dealt) {
  for (LeftToOthers& of_rank : dealt.left_to_others) {
    for (auto& items : of_rank) std::sort(items.begin(), items.end());
  }
}

/// How full each of the ranks (sorted by load) is once so many bytes have been added to the emptiest.
double level_of(const std::vector<Owner>& owners, const std::vector<double>& load, double bytes) {
  double sum = bytes;
  for (std::size_t count = 1; count <= owners.size(); ++count) {
    sum += load[owners[count - 1].state];
    const double level = sum / static_cast<double>(count);
    if (count == owners.size() || level <= load[owners[count].state]) return level;
  }
  return sum;
}

/// Fills up the owners that have least, as water fills a basin.
void pour(std::vector<Owner> owners, double bytes, const Box& box, std::size_t dimension,
          std::vector<double>& load, Dealt& dealt) {
  std::stable_sort(owners.begin(), owners.end(),
                   [&](const Owner& a, const Owner& b) { return load[a.state] < load[b.state]; });
  const std::int64_t slices = dimension < box.size.size() ? box.size[dimension] : 1;
  if (bytes < 2 * smallest_cut || slices < 2) {
    load[owners.front().state] += bytes;
    for (std::size_t i = 1; i < owners.size(); ++i) leave(owners[i], dealt);
    return;
  }
  const double per_slice = bytes / static_cast<double>(slices);
  const double level = level_of(owners, load, bytes);
  std::int64_t done = 0;
  double filled = 0;
  for (std::size_t i = 0; i < owners.size(); ++i) {
    const Owner& owner = owners[i];
    filled += std::max(0.0, level - load[owner.state]);
    std::int64_t end = std::min(slices, static_cast<std::int64_t>(std::llround(filled / per_slice)));
    if (i + 1 == owners.size() || static_cast<double>(slices - end) * per_slice < smallest_cut) end = slices;
    const bool is_worth_it = end == slices || static_cast<double>(end - done) * per_slice >= smallest_cut;
    if (done == slices || end <= done || !is_worth_it) {
      leave(owner, dealt);
      continue;
    }
    if (done > 0 || end < slices) {
      dealt.cuts[owner.state].push_back(
          {owner.holding, owner.item, static_cast<std::uint32_t>(dimension), done, end - done});
    }
    load[owner.state] += static_cast<double>(end - done) * per_slice;
    done = end;
  }
}

}  // namespace

void deal_whole(std::vector<Replicas> replicas, const std::vector<Owner>& owners, bool to_lowest,
                Dealt& dealt) {
  std::stable_sort(replicas.begin(), replicas.end(),
                   [](const Replicas& a, const Replicas& b) { return a.bytes > b.bytes; });
  std::vector<std::size_t> written(dealt.bytes_of_rank.size(),
                                   0);  // so that objects and empty tensors go round as well
  for (const Replicas& one : replicas) {
    const auto first = owners.begin() + static_cast<std::ptrdiff_t>(one.first_owner);
    const auto last = first + static_cast<std::ptrdiff_t>(one.owners);
    const auto writer = std::min_element(first, last, [&](const Owner& a, const Owner& b) {
      if (to_lowest) return a.state < b.state;
      return std::tuple(dealt.bytes_of_rank[a.state], written[a.state], a.state) <
             std::tuple(dealt.bytes_of_rank[b.state], written[b.state], b.state);
    });
    dealt.bytes_of_rank[writer->state] += one.bytes;
    ++written[writer->state];
    for (auto owner = first; owner != last; ++owner) {
      if (owner != writer) leave(*owner, dealt);
    }
  }
  sort_items(dealt);
}

void deal_in_parts(std::vector<Replicas> replicas, const std::vector<Owner>& owners,
                   const std::function<Box(const Replicas&)>& box_of,
                   const std::function<std::size_t(const Replicas&, const Box&)>& cut, Dealt& dealt) {
  std::stable_sort(replicas.begin(), replicas.end(), [](const Replicas& a, const Replicas& b) {
    return a.owners != b.owners ? a.owners < b.owners : a.bytes > b.bytes;
  });
  std::vector<double> load(dealt.bytes_of_rank.begin(), dealt.bytes_of_rank.end());
  for (const Replicas& one : replicas) {
    const auto first = owners.begin() + static_cast<std::ptrdiff_t>(one.first_owner);
    const Box box = box_of(one);
    pour({first, first + static_cast<std::ptrdiff_t>(one.owners)}, static_cast<double>(one.bytes), box,
         cut(one, box), load, dealt);
  }
  for (std::size_t s = 0; s < load.size(); ++s)
    dealt.bytes_of_rank[s] = static_cast<std::uint64_t>(std::llround(load[s]));
  sort_items(dealt);
}

}  // namespace shardwright
