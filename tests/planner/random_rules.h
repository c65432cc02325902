#pragma once

// Random rules with views, boxes and axes on both sides, and the plain reference for them: which element of
// which HF tensor a native element is, by counting factors one by one.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "planner/names/rule_pieces.h"
#include "tests/planner/random_checkpoint.h"

namespace shardwright {

/// HF tensors h0, h1, … (one for each expert, maybe) of which native tensors n0, n1, … are made: each native
/// tensor has a part of every HF tensor.
struct RandomRules {
  /// A factor of a dimension: an axis, of which either side may hold several, one after the other; or the
  /// number of an HF tensor, of a native tensor, of an expert, or of a shard.
  struct Factor {
    enum class Kind { axis, hf_number, native_number, expert, shard };
    Kind kind = Kind::axis;
    std::size_t axis = 0;
  };
  using Side = std::vector<std::vector<Factor>>;

  Shape axes;  ///< sizes, but for those that are cut into parts
  Side hf, native;
  std::int64_t hf_count = 1;      ///< of HF tensors (of each expert)
  std::int64_t native_count = 1;  ///< of native tensors
  std::int64_t experts = 0;       ///< 0: HF tensors are of no expert
  std::int64_t shards = 0;        ///< 0: HF tensors are not cut into shards

  // Sizes of the parts of an axis: of the native tensor, each from another HF tensor, or the other way round.
  std::optional<std::size_t> axis_of_native_parts, axis_of_hf_parts;
  Shape native_parts, hf_parts;

  WeightMap map;
  RandomModel model;

  explicit RandomRules(Random& random) {
    choose_axes(random);
    choose_numbers(random);
    add_rules(random);
    add_tensors(random);
  }

  HfElement element(std::size_t native_number, const Shape& at) const {
    const auto number = static_cast<std::int64_t>(native_number);
    Shape values(axes.size(), 0);
    std::int64_t hf_number = 0;
    std::int64_t expert = 0;
    std::int64_t shard = 0;
    for (std::size_t d = 0; d < native.size(); ++d) {
      std::int64_t rest = at[d];
      for (std::size_t f = native[d].size(); f-- > 0;) {
        const Factor& factor = native[d][f];
        const std::int64_t size = size_in_native(factor, number);
        std::int64_t value = rest % size;
        rest /= size;
        if (factor.kind == Factor::Kind::expert) expert = value;
        if (factor.kind == Factor::Kind::shard) shard = value;
        if (factor.kind == Factor::Kind::hf_number) hf_number = value;
        if (factor.kind != Factor::Kind::axis) continue;
        if (factor.axis == axis_of_native_parts) {
          hf_number = 0;
          while (value >= native_parts[static_cast<std::size_t>(hf_number)])
            value -= native_parts[static_cast<std::size_t>(hf_number++)];
        }
        values[factor.axis] = value;
      }
    }
    HfElement found{hf_name(hf_number, expert, shard), {}};
    for (const std::vector<Factor>& dimension : hf) {
      std::int64_t index = 0;
      for (const Factor& factor : dimension) {
        std::int64_t value = factor.kind == Factor::Kind::native_number ? number : values[factor.axis];
        for (std::int64_t before = 0; is_hf_parts(factor) && before < number; ++before)
          value += hf_parts[static_cast<std::size_t>(before)];
        index = index * size_in_hf(factor, hf_number) + value;
      }
      found.index.push_back(index);
    }
    return found;
  }

  std::string hf_name(std::int64_t number, std::int64_t expert, std::int64_t shard) const {
    return hf_pattern(number, experts == 0 ? "" : std::to_string(expert),
                      shards == 0 ? "" : std::to_string(shard));
  }

 private:
  static std::string hf_pattern(std::int64_t number, const std::string& expert, const std::string& shard) {
    std::string name = "h" + std::to_string(number);
    if (!expert.empty()) name += "." + expert;
    if (!shard.empty()) name += ".shard_" + shard;
    return name + ".weight";
  }

  bool is_hf_parts(const Factor& factor) const {
    return factor.kind == Factor::Kind::axis && factor.axis == axis_of_hf_parts;
  }
  bool is_native_parts(const Factor& factor) const {
    return factor.kind == Factor::Kind::axis && factor.axis == axis_of_native_parts;
  }

  /// The size of an axis in what HF tensor and native tensor have in common.
  std::int64_t size_of(std::size_t axis, std::int64_t hf_number, std::int64_t native_number) const {
    if (axis == axis_of_native_parts) return native_parts[static_cast<std::size_t>(hf_number)];
    if (axis == axis_of_hf_parts) return hf_parts[static_cast<std::size_t>(native_number)];
    return axes[axis];
  }
  static std::int64_t sum(const Shape& parts) {
    std::int64_t all = 0;
    for (const std::int64_t part : parts) all += part;
    return all;
  }
  std::int64_t size_in_native(const Factor& factor, std::int64_t native_number) const {
    if (factor.kind == Factor::Kind::expert) return experts;
    if (factor.kind == Factor::Kind::shard) return shards;
    if (factor.kind == Factor::Kind::hf_number) return hf_count;
    return is_native_parts(factor) ? sum(native_parts) : size_of(factor.axis, 0, native_number);
  }
  std::int64_t size_in_hf(const Factor& factor, std::int64_t hf_number) const {
    if (factor.kind == Factor::Kind::native_number) return native_count;
    return is_hf_parts(factor) ? sum(hf_parts) : size_of(factor.axis, hf_number, 0);
  }

  static Side random_side(Random& random, std::size_t axes, std::int64_t most_dimensions) {
    std::vector<Factor> order;
    for (std::size_t axis = 0; axis < axes; ++axis) order.push_back({Factor::Kind::axis, axis});
    random.shuffle(order);
    Side side(static_cast<std::size_t>(random.between(1, most_dimensions)));
    for (std::size_t i = 0; i < order.size(); ++i) {
      // No dimension is without a factor, where there are enough.
      const std::size_t d =
          i < side.size() ? i : static_cast<std::size_t>(random.between(0, std::ssize(side) - 1));
      side[d].push_back(order[i]);
    }
    std::erase_if(side, [](const std::vector<Factor>& dimension) { return dimension.empty(); });
    return side;
  }

  static void insert(Random& random, Side& side, Factor::Kind kind) {
    if (random.once_in(3)) {
      side.insert(side.begin() + random.between(0, std::ssize(side)), std::vector<Factor>{Factor{kind, 0}});
    } else {
      auto& dimension = side[static_cast<std::size_t>(random.between(0, std::ssize(side) - 1))];
      dimension.insert(dimension.begin() + random.between(0, std::ssize(dimension)), Factor{kind, 0});
    }
  }

  void choose_axes(Random& random) {
    axes = random_shape(random, random.between(1, 4), 1, 6);
    hf = random_side(random, axes.size(), random.once_in(2) ? 2 : 3);
    native = random_side(random, axes.size(), 3);
  }

  void choose_numbers(Random& random) {
    if (random.once_in(2)) {
      hf_count = random.between(2, 3);
      if (random.once_in(2)) {
        insert(random, native, Factor::Kind::hf_number);
      } else {
        axis_of_native_parts = static_cast<std::size_t>(random.between(0, std::ssize(axes) - 1));
        native_parts = random_shape(random, hf_count, 1, 5);
      }
    }
    if (random.once_in(2)) {
      native_count = random.between(2, 3);
      if (random.once_in(2) || axes.size() == 1) {
        insert(random, hf, Factor::Kind::native_number);
      } else {
        do {
          axis_of_hf_parts = static_cast<std::size_t>(random.between(0, std::ssize(axes) - 1));
        } while (axis_of_hf_parts == axis_of_native_parts);
        hf_parts = random_shape(random, native_count, 1, 5);
      }
    }
    if (random.once_in(3)) {
      experts = random.between(1, 3);
      insert(random, native, Factor::Kind::expert);
    }
    if (random.once_in(4)) {
      shards = random.between(1, 3);
      insert(random, native, Factor::Kind::shard);
    }
  }

  static std::string letter(std::size_t axis) { return std::string(1, static_cast<char>('a' + axis)); }

  static std::string parts(const Shape& sizes, std::int64_t taken, const std::string& name) {
    std::string text;
    for (std::int64_t i = 0; i < std::ssize(sizes); ++i) {
      text += i == 0 ? "" : "|";
      text += i == taken ? "[" + name + "]" : std::to_string(sizes[static_cast<std::size_t>(i)]);
    }
    return text;
  }

  std::string text_of(const Side& side, bool is_hf, std::int64_t hf_number,
                      std::int64_t native_number) const {
    std::string text;
    for (const std::vector<Factor>& dimension : side) {
      std::string inside;
      for (const Factor& factor : dimension) {
        inside += inside.empty() ? "" : " ";
        if (factor.kind == Factor::Kind::expert) {
          inside += "{expert}";
        } else if (factor.kind == Factor::Kind::shard) {
          inside += "{shard}";
        } else if (factor.kind == Factor::Kind::hf_number) {
          inside += std::to_string(hf_number) + "/" + std::to_string(hf_count);
        } else if (factor.kind == Factor::Kind::native_number) {
          inside += std::to_string(native_number) + "/" + std::to_string(native_count);
        } else if (is_hf && is_hf_parts(factor)) {
          inside += parts(hf_parts, native_number, name_of_axis(factor.axis, hf_number, native_number));
        } else if (!is_hf && is_native_parts(factor)) {
          inside += parts(native_parts, hf_number, name_of_axis(factor.axis, hf_number, native_number));
        } else {
          inside += name_of_axis(factor.axis, hf_number, native_number);
        }
      }
      text += (text.empty() ? "" : " ") + ("(" + inside + ")");
    }
    return text;
  }

  /// An axis that is cut into parts has another size in each rule.
  std::string name_of_axis(std::size_t axis, std::int64_t hf_number, std::int64_t native_number) const {
    if (axis == axis_of_native_parts) return letter(axis) + std::to_string(hf_number);
    if (axis == axis_of_hf_parts) return letter(axis) + std::to_string(native_number);
    return letter(axis);
  }

  void add_rules(Random& random) {
    map.family = "random";
    map.layout = "random";
    // Counts in a dimension of several factors follow from the shapes of both tensors, if there is one.
    for (const std::vector<Factor>& dimension : native) {
      bool is_counted = random.once_in(2);
      for (const Factor& factor : dimension) {
        const bool is_expert = factor.kind == Factor::Kind::expert;
        if (!is_expert && factor.kind != Factor::Kind::shard) continue;
        if (is_counted && dimension.size() > 1)
          map.sizes[is_expert ? "{expert}" : "{shard}"] = is_expert ? experts : shards;
        is_counted = true;
      }
    }
    // One size may be left to the shapes.
    const auto unnamed = static_cast<std::size_t>(random.between(0, std::ssize(axes)));
    for (std::int64_t h = 0; h < hf_count; ++h) {
      for (std::int64_t n = 0; n < native_count; ++n) {
        for (std::size_t axis = 0; axis < axes.size(); ++axis) {
          if (axis != unnamed) map.sizes[name_of_axis(axis, h, n)] = size_of(axis, h, n);
        }
        const std::string name = hf_pattern(h, experts == 0 ? "" : "{expert}", shards == 0 ? "" : "{shard}");
        map.rules.push_back(
            {NamePattern(name), NamePattern("n" + std::to_string(n)),
             AxisExpression(text_of(hf, true, h, n) + " -> " + text_of(native, false, h, n))});
      }
    }
  }

  void add_tensors(Random& random) {
    const auto wide = [&] { return random.one_of<DType>({DType::BF16, DType::F16, DType::F32}); };
    for (std::int64_t n = 0; n < native_count; ++n) {
      Native tensor{"n" + std::to_string(n), wide(), {}};
      for (const std::vector<Factor>& dimension : native) {
        std::int64_t size = 1;
        for (const Factor& factor : dimension) size *= size_in_native(factor, n);
        tensor.shape.push_back(size);
      }
      model.natives.push_back(tensor);
    }
    for (std::int64_t h = 0; h < hf_count; ++h) {
      Shape shape;
      for (const std::vector<Factor>& dimension : hf) {
        std::int64_t size = 1;
        for (const Factor& factor : dimension) size *= size_in_hf(factor, h);
        shape.push_back(size);
      }
      for (std::int64_t expert = 0; expert < std::max<std::int64_t>(1, experts); ++expert) {
        for (std::int64_t shard = 0; shard < std::max<std::int64_t>(1, shards); ++shard) {
          const std::string name = hf_name(h, expert, shard);
          const bool scaled = shape.size() == 2 && random.once_in(2);
          const DType dtype = scaled ? random.one_of<DType>({DType::F8_E4M3, DType::F8_E5M2}) : wide();
          model.stored.push_back({name, dtype, shape, random_chunks(random, shape)});
          if (scaled) model.stored.push_back(random_scales(random, name, shape));
        }
      }
    }
  }
};

}  // namespace shardwright
