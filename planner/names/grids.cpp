#include "planner/names/grids.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

/// A correspondence's HF side in blocks.
struct InBlocks {
  View view;
  Box box;
  std::vector<int> axes;

  /// For each native factor: its indices in the box, in blocks.
  Shape extents;
};

/// The HF side of one correspondence, dimension by dimension.
class HfSide {
 public:
  HfSide(const Correspondence& of, const Grid& grid) : of_(of), grid_(grid) {
    in_blocks_.extents = of.native_box.size;
  }

  InBlocks in_blocks() {
    std::size_t first = 0;
    for (std::size_t d = 0; d < grid_.blocks.size(); ++d) {
      std::size_t last = first;
      while (last < of_.hf_view.dimensions.size() && of_.hf_view.dimensions[last] == static_cast<int>(d))
        ++last;
      add_dimension(d, first, last);
      first = last;
    }
    return std::move(in_blocks_);
  }

 private:
  void add_dimension(std::size_t d, std::size_t first, std::size_t last) {
    const std::int64_t block = grid_.blocks[d];
    innermost_ = -1;
    if (block == 0) return add_whole(d, first, last);
    if (block == 1) {
      for (std::size_t i = first; i < last; ++i)
        add(d, i, of_.hf_view.sizes[i], of_.hf_box.offset[i], of_.hf_box.size[i]);
    } else if (last == first + 1 && of_.hf_box.size[first] == of_.hf_view.sizes[first]) {
      expect_innermost(first);
      add(d, first, grid_.shape[d], 0, grid_.shape[d]);
    } else {
      add_divided(d, first, last, block);
    }
    const auto at = in_blocks_.view.sizes.end() - static_cast<std::ptrdiff_t>(last - first);
    const std::int64_t size =
        std::accumulate(at, in_blocks_.view.sizes.end(), std::int64_t{1}, std::multiplies<>());
    if (size != grid_.shape[d])
      throw Error(ErrorKind::mismatch, "expected " + std::to_string(size) + " along dimension " +
                                           std::to_string(d) + " of its " + to_string(grid_.shape));
  }

  /// One entry for all of a dimension, which the grid has, with size 1, or has not.
  void add_whole(std::size_t d, std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      if (of_.axes[i] >= 0) in_blocks_.extents[static_cast<std::size_t>(of_.axes[i])] = 1;
    }
    if (d >= grid_.shape.size()) return;
    in_blocks_.view.sizes.push_back(1);
    in_blocks_.view.dimensions.push_back(static_cast<int>(d));
    in_blocks_.box.offset.push_back(0);
    in_blocks_.box.size.push_back(1);
    in_blocks_.axes.push_back(-1);
  }

  /// Blocks of a dimension in several factors, or of a part of it: from the innermost factor outwards.
  void add_divided(std::size_t d, std::size_t first, std::size_t last, std::int64_t block) {
    Shape sizes(of_.hf_view.sizes.begin() + static_cast<std::ptrdiff_t>(first),
                of_.hf_view.sizes.begin() + static_cast<std::ptrdiff_t>(last));
    Box box = part_of(first, last);
    for (std::size_t i = sizes.size(); i-- > 0 && block > 1;) {
      std::int64_t& size = sizes[i];
      if (size == 1) continue;
      const bool divides = size % block == 0 && box.offset[i] % block == 0 && box.size[i] % block == 0;
      const bool is_within = block % size == 0 && box.size[i] == size;
      if (!divides && !is_within) refuse_cut(d);
      expect_innermost(first + i);
      const std::int64_t by = divides ? block : size;
      size /= by;
      box.offset[i] /= by;
      box.size[i] /= by;
      block /= by;
    }
    if (block > 1) refuse_cut(d);
    for (std::size_t i = 0; i < sizes.size(); ++i) add(d, first + i, sizes[i], box.offset[i], box.size[i]);
  }

  Box part_of(std::size_t first, std::size_t last) const {
    const auto from = static_cast<std::ptrdiff_t>(first);
    const auto to = static_cast<std::ptrdiff_t>(last);
    return {Shape(of_.hf_box.offset.begin() + from, of_.hf_box.offset.begin() + to),
            Shape(of_.hf_box.size.begin() + from, of_.hf_box.size.begin() + to)};
  }

  void add(std::size_t d, std::size_t factor, std::int64_t size, std::int64_t offset, std::int64_t count) {
    in_blocks_.view.sizes.push_back(size);
    in_blocks_.view.dimensions.push_back(static_cast<int>(d));
    in_blocks_.box.offset.push_back(offset);
    in_blocks_.box.size.push_back(count);
    in_blocks_.axes.push_back(of_.axes[factor]);
    if (of_.axes[factor] >= 0) in_blocks_.extents[static_cast<std::size_t>(of_.axes[factor])] = count;
  }

  /// Elements that follow one another inside a block do so in the native tensor.
  void expect_innermost(std::size_t factor) {
    if (of_.hf_view.sizes[factor] == 1) return;
    const int partner = of_.axes[factor];
    const std::vector<int>& dimensions = of_.native_view.dimensions;
    const auto next = static_cast<std::size_t>(partner) + 1;
    const bool is_last =
        partner >= 0 && (next == dimensions.size() || dimensions[next] != dimensions[next - 1]);
    const bool goes_on = partner >= 0 && partner + 1 == innermost_ && !is_last &&
                         of_.native_box.size[next] == of_.native_view.sizes[next];
    if (!(innermost_ < 0 ? is_last : goes_on))
      throw Error(ErrorKind::mismatch, "the rule takes the elements of a block apart");
    innermost_ = partner;
  }

  [[noreturn]] static void refuse_cut(std::size_t d) {
    throw Error(ErrorKind::mismatch, "the rule cuts dimension " + std::to_string(d) + " inside a block");
  }

  const Correspondence& of_;
  const Grid& grid_;
  InBlocks in_blocks_;
  int innermost_ = -1;  // native factor of the block's elements so far, of the dimension at hand
};

/// Where the ranges that parts take of one native factor lie in its blocks.
class Ranges {
 public:
  void add(std::int64_t offset, std::int64_t size, std::int64_t blocks) {
    const auto [range, is_new] = ranges_.try_emplace({offset, size}, Blocks{blocks, 0});
    if (!is_new && range->second.count != blocks)
      throw Error(ErrorKind::mismatch, "its parts have blocks of different sizes");
  }

  /// Lays the ranges out one after the other; returns the blocks in all.
  std::int64_t lay_out(std::int64_t factor_size) {
    std::int64_t end = 0;
    std::int64_t blocks = 0;
    for (auto& [range, of_range] : ranges_) {
      if (range.first != end) throw Error(ErrorKind::mismatch, "its parts do not lie side by side");
      end += range.second;
      of_range.first = blocks;
      blocks += of_range.count;
    }
    if (end != factor_size) throw Error(ErrorKind::mismatch, "its parts do not fill it");
    return blocks;
  }

  std::int64_t first_block(std::int64_t offset, std::int64_t size) const {
    return ranges_.at({offset, size}).first;
  }

 private:
  struct Blocks {
    std::int64_t count;
    std::int64_t first;
  };
  std::map<std::pair<std::int64_t, std::int64_t>, Blocks> ranges_;
};

/// A tensor of its own, whose grid needs no dimensions that it has not.
bool is_unchanged(const Correspondence& of) {
  std::vector<int> same(of.axes.size());
  std::iota(same.begin(), same.end(), 0);
  return of.axes == same && is_plain(of.hf_view) && of.hf_view == of.native_view &&
         of.hf_box == whole(of.hf_view.sizes) && of.native_box == of.hf_box;
}

NativeGrid unchanged_grid(const Grid& grid) {
  const View view = plain_view(grid.shape);
  const Box all = whole(grid.shape);
  return {grid.shape,
          {{std::make_shared<Correspondence>(Correspondence{view, all, view, all, view.dimensions}), all}}};
}

}  // namespace

NativeGrid native_grid(const std::vector<GriddedPart>& parts) {
  if (parts.size() == 1 && is_unchanged(*parts[0].of)) return unchanged_grid(parts[0].grid);
  const View& native = parts.front().of->native_view;
  std::map<const Correspondence*, InBlocks> in_blocks;
  std::vector<Ranges> ranges(native.sizes.size());
  for (const GriddedPart& part : parts) {
    if (part.of->native_view != native)
      throw Error(ErrorKind::mismatch, "its parts are seen in different shapes");
    const auto [of, is_new] = in_blocks.try_emplace(part.of);
    if (is_new) of->second = HfSide(*part.of, part.grid).in_blocks();
    for (std::size_t i = 0; i < ranges.size(); ++i)
      ranges[i].add(part.native_box.offset[i], part.native_box.size[i], of->second.extents[i]);
  }
  View view = native;
  for (std::size_t i = 0; i < ranges.size(); ++i) view.sizes[i] = ranges[i].lay_out(native.sizes[i]);

  NativeGrid grid{tensor_shape(view), {}};
  std::map<const Correspondence*, std::shared_ptr<const Correspondence>> placed;
  for (const GriddedPart& part : parts) {
    const InBlocks& blocks = in_blocks.at(part.of);
    Box box{{}, blocks.extents};
    for (std::size_t i = 0; i < ranges.size(); ++i)
      box.offset.push_back(ranges[i].first_block(part.native_box.offset[i], part.native_box.size[i]));
    std::shared_ptr<const Correspondence>& of = placed[part.of];
    if (of == nullptr) {
      of = std::make_shared<Correspondence>(Correspondence{blocks.view, blocks.box, view, box, blocks.axes});
      if (const std::string fault = fault_of(*of); !fault.empty()) throw Error(ErrorKind::mismatch, fault);
    }
    grid.parts.push_back({of, std::move(box)});
  }
  return grid;
}

}  // namespace shardwright
