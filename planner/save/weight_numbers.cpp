#include "planner/save/weight_numbers.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/names/companions.h"

namespace shardwright {
namespace {

/// Puts numbers that belong to places in the order of the places.
void write_sorted(const std::unordered_map<std::int64_t, float>& numbers, std::vector<std::int64_t>& places,
                  std::vector<float>& values) {
  places.reserve(numbers.size());
  for (const auto& [place, number] : numbers) places.push_back(place);
  std::sort(places.begin(), places.end());
  values.reserve(places.size());
  for (const std::int64_t place : places) values.push_back(numbers.at(place));
}

void expect_places(const std::vector<std::int64_t>& places, std::size_t numbers, std::int64_t end,
                   const WeightNumbers& of, std::size_t rank) {
  const bool fits =
      places.size() == numbers && std::all_of(places.begin(), places.end(),
                                              [&](std::int64_t place) { return place >= 0 && place < end; });
  if (fits) return;
  throw Error(ErrorKind::malformed, "rank " + std::to_string(rank) + ": " + of.weight +
                                        ": has told of blocks or elements that the weight does not have; "
                                        "do all ranks run the same version of shardwright?");
}

std::optional<float> found_in(const std::unordered_map<std::int64_t, float>& numbers, std::int64_t place) {
  const auto found = numbers.find(place);
  return found == numbers.end() ? std::nullopt : std::optional<float>(found->second);
}

bool is_same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  });
}

}  // namespace

bool WeightNumbers::operator==(const WeightNumbers& other) const {
  return weight == other.weight && is_same({largest}, {other.largest}) && blocks == other.blocks &&
         is_same(magnitudes, other.magnitudes) && elements == other.elements &&
         is_same(values, other.values) && wanted == other.wanted;
}

bool is_told_by_numbers(const ExportForm& form, const Encoding& encoding, std::size_t dimensions) {
  if (form.quantize == nullptr || !encoding.scaled) return false;
  return form.quantize->rule != EncodingRule::mxfp8 || dimensions != 2;
}

std::vector<Box> in_cut_blocks(const Encoding& encoding, const Box& box, const Shape& weight_shape) {
  std::vector<Box> parts;
  if (is_empty(box)) return parts;
  const std::size_t rank = weight_shape.size();
  for (std::size_t d = rank - 2; d < rank; ++d) {
    const std::int64_t block = block_along(encoding, rank, d);
    const std::int64_t begin = box.offset[d];
    const std::int64_t end = begin + box.size[d];
    const std::int64_t last = (end - 1) / block;
    const auto add = [&](std::int64_t number) {
      Box part = box;
      part.offset[d] = std::max(begin, number * block);
      part.size[d] = std::min(end, (number + 1) * block) - part.offset[d];
      parts.push_back(std::move(part));
    };
    const bool cuts_first = begin % block != 0;
    if (cuts_first) add(begin / block);
    if (end % block != 0 && end != weight_shape[d] && !(cuts_first && begin / block == last)) add(last);
  }
  return parts;
}

std::optional<Box> column_for_another(const Encoding& encoding, const Box& box) {
  if (!is_packed(encoding.element) || is_empty(box) || box.offset.back() % 2 == 0) return std::nullopt;
  Box column = box;
  column.size.back() = 1;
  return column;
}

std::optional<Box> column_of_another(const Encoding& encoding, const Box& box) {
  if (!is_packed(encoding.element) || is_empty(box)) return std::nullopt;
  Box column = box;
  column.offset.back() += box.size.back();
  column.size.back() = 1;
  return column.offset.back() % 2 == 0 ? std::nullopt : std::optional<Box>(std::move(column));
}

void for_each_number(const Box& box, const Shape& shape, const std::function<void(std::int64_t)>& visit) {
  if (is_empty(box)) return;
  const Shape strides = contiguous_strides(shape);
  Shape index(box.size.size(), 0);
  do {
    std::int64_t number = 0;
    for (std::size_t d = 0; d < index.size(); ++d) number += (box.offset[d] + index[d]) * strides[d];
    visit(number);
  } while (next_index(index, box.size));
}

void share_numbers(const Catalog& catalog, std::vector<std::vector<WeightNumbers>>& ranks) {
  KnownNumbers known;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::erase_if(ranks[rank], [&](const WeightNumbers& numbers) {
      return catalog.find(numbers.weight).empty() || scales_of(catalog, numbers.weight).empty();
    });
    for (const WeightNumbers& numbers : ranks[rank]) {
      const std::span<const SourceTensor> weight = catalog.find(numbers.weight);
      const std::span<const SourceTensor> scales = scales_of(catalog, numbers.weight);
      const std::int64_t elements = volume(weight.front().shape);
      const std::int64_t blocks = volume(scales.front().shape);
      expect_places(numbers.blocks, numbers.magnitudes.size(), blocks, numbers, rank);
      expect_places(numbers.elements, numbers.values.size(), elements, numbers, rank);
      expect_places(numbers.wanted, numbers.wanted.size(), elements, numbers, rank);
      known.add(numbers);
    }
  }
  for (std::vector<WeightNumbers>& of_rank : ranks) {
    for (WeightNumbers& numbers : of_rank) {
      numbers.largest = known.largest(numbers.weight).value_or(0);
      for (std::size_t b = 0; b < numbers.blocks.size(); ++b)
        numbers.magnitudes[b] = *known.magnitude(numbers.weight, numbers.blocks[b]);
      numbers.elements.clear();
      numbers.values.clear();
      for (const std::int64_t wanted : numbers.wanted) {
        const std::optional<float> value = known.value(numbers.weight, wanted);
        if (!value) continue;  // whoever needs it says so, with its name
        numbers.elements.push_back(wanted);
        numbers.values.push_back(*value);
      }
      numbers.wanted.clear();
    }
  }
}

void KnownNumbers::add_magnitude(const std::string& weight, std::int64_t block, float magnitude) {
  const auto [found, is_new] = weights_[weight].magnitudes.emplace(block, magnitude);
  if (!is_new) found->second = larger_magnitude(found->second, magnitude);
}

void KnownNumbers::add_value(const std::string& weight, std::int64_t element, float value) {
  weights_[weight].values.insert_or_assign(element, value);
}

void KnownNumbers::add_largest(const std::string& weight, float largest) {
  std::optional<float>& known = weights_[weight].largest;
  known = known ? larger_magnitude(*known, largest) : largest;
}

void KnownNumbers::add(const WeightNumbers& numbers) {
  add_largest(numbers.weight, numbers.largest);
  for (std::size_t b = 0; b < numbers.blocks.size(); ++b)
    add_magnitude(numbers.weight, numbers.blocks[b], numbers.magnitudes[b]);
  for (std::size_t e = 0; e < numbers.elements.size(); ++e)
    add_value(numbers.weight, numbers.elements[e], numbers.values[e]);
}

std::optional<float> KnownNumbers::magnitude(const std::string& weight, std::int64_t block) const {
  const auto of_weight = weights_.find(weight);
  return of_weight == weights_.end() ? std::nullopt : found_in(of_weight->second.magnitudes, block);
}

std::optional<float> KnownNumbers::value(const std::string& weight, std::int64_t element) const {
  const auto of_weight = weights_.find(weight);
  return of_weight == weights_.end() ? std::nullopt : found_in(of_weight->second.values, element);
}

std::optional<float> KnownNumbers::largest(const std::string& weight) const {
  const auto of_weight = weights_.find(weight);
  return of_weight == weights_.end() ? std::nullopt : of_weight->second.largest;
}

std::vector<WeightNumbers> KnownNumbers::all() const {
  std::vector<WeightNumbers> all;
  for (const auto& [name, of_weight] : weights_) {
    WeightNumbers& numbers = all.emplace_back();
    numbers.weight = name;
    numbers.largest = of_weight.largest.value_or(0);
    write_sorted(of_weight.magnitudes, numbers.blocks, numbers.magnitudes);
    write_sorted(of_weight.values, numbers.elements, numbers.values);
  }
  std::sort(all.begin(), all.end(),
            [](const WeightNumbers& a, const WeightNumbers& b) { return a.weight < b.weight; });
  return all;
}

}  // namespace shardwright
