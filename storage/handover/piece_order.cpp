#include "storage/handover/piece_order.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "planner/names/companions.h"

namespace shardwright {
namespace {

/// What comes before the layer's number, and the number; -1: the name has none.
std::pair<std::string_view, std::int64_t> list_and_number(std::string_view layer) {
  const std::size_t dot = layer.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? layer : layer.substr(dot + 1);
  if (last.empty() || last.size() > 9 || last.find_first_not_of("0123456789") != std::string_view::npos)
    return {layer, -1};
  std::int64_t number = 0;
  for (const char digit : last) number = 10 * number + (digit - '0');
  return {dot == std::string_view::npos ? std::string_view() : layer.substr(0, dot), number};
}

}  // namespace

std::string layer_of(std::string_view name) {
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (!part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos)
      return std::string(name.substr(0, end));
    begin = end + 1;
  }
  const std::size_t dot = name.rfind('.');
  return std::string(dot == std::string_view::npos ? name : name.substr(0, dot));
}

std::string_view weight_of(std::string_view name) { return weight_name_of(weight_name_of_companion(name)); }

HandoverOrder order_by_layer(const Catalog& catalog) {
  const std::vector<SourceTensor>& tensors = catalog.tensors;
  std::vector<std::uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::pair(tensors[a].file, tensors[a].begin) < std::pair(tensors[b].file, tensors[b].begin);
  });
  std::unordered_map<std::string, std::size_t> lists;  // by where they begin in the files
  std::vector<std::tuple<std::size_t, std::int64_t, std::uint32_t>> keys;
  for (std::uint32_t place = 0; place < order.size(); ++place) {
    const std::string layer = layer_of(weight_of(tensors[order[place]].name));
    const auto [list, number] = list_and_number(layer);
    keys.emplace_back(lists.emplace(list, lists.size()).first->second, number, place);
  }
  std::sort(keys.begin(), keys.end());
  HandoverOrder found{std::vector<std::uint32_t>(tensors.size()), std::vector<std::uint32_t>(tensors.size())};
  std::uint32_t layer = 0;
  for (std::uint32_t place = 0; place < keys.size(); ++place) {
    const auto& [list, number, in_files] = keys[place];
    if (place > 0 &&
        std::pair(list, number) != std::pair(std::get<0>(keys[place - 1]), std::get<1>(keys[place - 1])))
      ++layer;
    found.places[order[in_files]] = place;
    found.layers[order[in_files]] = layer;
  }
  return found;
}

}  // namespace shardwright
