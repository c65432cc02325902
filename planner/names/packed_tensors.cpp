#include "planner/names/packed_tensors.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/names/grids.h"
#include "planner/names/packed_weights.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// How files hold a tensor of the catalog.
StoredForm stored_form(const SourceTensor& tensor) {
  return tensor.stored != nullptr ? *tensor.stored : StoredForm{tensor.name, tensor.dtype, tensor.shape};
}

/// The dtype of a stored unit that several elements share; of safetensors' own F4, of which torch has no
/// elements, the byte.
DType unit_of(const SourceTensor& tensor) {
  const DType dtype = stored_form(tensor).dtype;
  return is_packed(dtype) ? DType::U8 : dtype;
}

/// The tensor as the units that files hold.
SourceTensor in_units(SourceTensor tensor) {
  if (!is_packed(tensor.dtype)) return tensor;
  const std::int64_t elements = elements_of_unit(tensor);
  const DType unit = unit_of(tensor);
  if (tensor.stored == nullptr) tensor.stored = std::make_shared<const StoredForm>(stored_form(tensor));
  tensor.dtype = unit;
  tensor.shape.back() /= elements;
  tensor.offset.back() /= elements;
  return tensor;
}

/// A name beside a weight's: behind it, or in place of its ".weight" as compressed-tensors names what belongs
/// to a module.
struct Ending {
  bool of_module = false;
  std::string text;

  static Ending of(std::string_view companion, std::string_view weight_name) {
    if (companion.starts_with(weight_name)) return {false, std::string(companion.substr(weight_name.size()))};
    return {true, std::string(companion.substr(weight_name.size() - std::string_view("weight").size()))};
  }

  std::string beside(const std::string& weight_name) const {
    constexpr std::string_view weight = "weight";
    if (!of_module) return weight_name + text;
    if (!weight_name.ends_with("." + std::string(weight))) return weight_name + "_" + text;
    return weight_name.substr(0, weight_name.size() - weight.size()) + text;
  }

  auto operator<=>(const Ending&) const = default;
};

/// One stored tensor of an encoded weight: its codes, with an empty ending, or a companion.
struct StoredTensor {
  Ending ending = {};
  DType dtype = DType::U8;
  Grid grid = {};
  bool is_needed = true;
};

Grid grid_of_codes(const SourceTensor& codes, const Shape& weight_shape) {
  Grid grid{weight_shape, Shape(weight_shape.size(), 1)};
  grid.blocks.back() = elements_of_unit(codes);
  grid.shape.back() /= grid.blocks.back();
  return grid;
}

Grid grid_of_scales(const Encoding& encoding, const Shape& shape, const Shape& weight_shape) {
  Grid grid{shape, Shape(weight_shape.size(), 0)};
  for (std::size_t d = 0; d < shape.size(); ++d) {
    const std::int64_t block = block_along(encoding, weight_shape.size(), d);
    const bool is_one = shape[d] == 1 && block >= weight_shape[d] && d + 2 >= weight_shape.size();
    grid.blocks[d] = is_one ? 0 : block;
  }
  return grid;
}

/// Of a companion with one number, or one for each of the first indices; nothing of any other.
std::optional<Grid> grid_of_numbers(const Shape& shape, const Shape& weight_shape) {
  Grid grid{shape, Shape(weight_shape.size(), 0)};
  if (volume(shape) == 1 && shape.size() <= weight_shape.size()) return grid;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) continue;
    if (d + 2 >= weight_shape.size() || shape[d] != weight_shape[d]) return std::nullopt;
    grid.blocks[d] = 1;
  }
  return grid;
}

/// What files hold of an encoded weight, but for its shape, which says how it is packed. Throws
/// Error(mismatch) as encoding_of().
std::vector<StoredTensor> stored_tensors(const Catalog& catalog, std::span<const SourceTensor> weight) {
  const Shape shape = Catalog::global_shape(weight);
  const std::string& name = weight.front().name;
  const Encoding encoding = encoding_of(catalog, weight);
  for (const SourceTensor& chunk : weight) {
    const std::int64_t elements = elements_of_unit(chunk);
    if (chunk.offset.back() % elements != 0 || chunk.shape.back() % elements != 0)
      throw Error(ErrorKind::mismatch, name + " is stored in chunks that cut a byte or word");
  }
  std::vector<StoredTensor> tensors(1);
  tensors.front().dtype = unit_of(weight.front());
  tensors.front().grid = grid_of_codes(weight.front(), shape);
  const std::string scales = name + std::string(encoding.scale_suffix);
  const std::string global = name + std::string(encoding.global_suffix);
  for (const std::string& companion : companions_of(catalog, name)) {
    const auto chunks = catalog.find(companion);
    const Shape of_companion = Catalog::global_shape(chunks);
    std::optional<Grid> grid = companion == scales ? grid_of_scales(encoding, of_companion, shape)
                                                   : grid_of_numbers(of_companion, shape);
    if (!grid || companion == name + "_shape") continue;
    const bool is_needed = companion == scales || (!encoding.global_suffix.empty() && companion == global);
    tensors.push_back({Ending::of(companion, name), chunks.front().dtype, std::move(*grid), is_needed});
  }
  return tensors;
}

bool is_encoded(const Catalog& catalog, const Piece& piece) {
  const auto weight = catalog.find(piece.hf_name);
  return !weight.empty() && !scales_of(catalog, piece.hf_name).empty();
}

/// How one native weight is held packed.
class PackedWeight {
 public:
  PackedWeight(const Catalog& catalog, const NativeTensor& native, std::vector<Piece> pieces)
      : native_(native), pieces_(std::move(pieces)) {
    for (const Piece& piece : pieces_) {
      if (piece.rule->rest_is_zero || !piece.multiplier.empty())
        throw Error(ErrorKind::mismatch, "it is more than what " + piece.hf_name + " stores");
      if (of_rules_.contains(piece.rule)) continue;
      const auto weight = catalog.find(piece.hf_name);
      if (weight.empty()) throw Error(ErrorKind::mismatch, "the checkpoint lacks " + piece.hf_name);
      if (!is_encoded(catalog, piece))
        throw Error(ErrorKind::mismatch, piece.hf_name + " has no scales, as other parts of it have");
      of_rules_.emplace(piece.rule, stored_tensors(catalog, weight));
    }
  }

  /// Codes and companions, by the order of their endings.
  std::vector<PackedTensor> tensors() const {
    std::set<Ending> endings;
    for (const auto& [rule, stored] : of_rules_) {
      for (const StoredTensor& one : stored) endings.insert(one.ending);
    }
    std::vector<PackedTensor> all;
    for (const Ending& ending : endings) {
      try {
        if (auto tensor = tensor_with(ending)) all.push_back(std::move(*tensor));
      } catch (const Error& error) {
        throw Error(error.kind,
                    (ending.text.empty() ? "codes" : ending.text) + std::string(": ") + error.what());
      }
    }
    return all;
  }

 private:
  /// Nothing for scales of activations that not all parts have.
  std::optional<PackedTensor> tensor_with(const Ending& ending) const {
    PackedTensor tensor{native_, native_.fqn, false, {}};
    tensor.native.fqn = ending.beside(native_.fqn);
    tensor.native.is_companion = !ending.text.empty();
    std::map<const Rule*, const StoredTensor*> of_rules;
    bool is_in_all = true;
    for (const auto& [rule, stored] : of_rules_) {
      const auto found = std::find_if(stored.begin(), stored.end(),
                                      [&](const StoredTensor& one) { return one.ending == ending; });
      is_in_all = is_in_all && found != stored.end();
      if (found == stored.end()) continue;
      tensor.is_needed = tensor.is_needed || found->is_needed;
      of_rules.emplace(rule, &*found);
    }
    if (!is_in_all && !tensor.is_needed) return std::nullopt;
    if (!is_in_all) throw Error(ErrorKind::mismatch, "its parts are encoded differently");
    tensor.native.dtype = of_rules.begin()->second->dtype;
    std::vector<GriddedPart> parts;
    for (const Piece& piece : pieces_) {
      const StoredTensor& stored = *of_rules.at(piece.rule);
      if (stored.dtype != tensor.native.dtype)
        throw Error(ErrorKind::mismatch, "its parts are encoded differently");
      parts.push_back({piece.correspondence.get(), piece.native_box, stored.grid});
    }
    NativeGrid grid = native_grid(parts);
    tensor.native.shape = std::move(grid.shape);
    for (std::size_t p = 0; p < pieces_.size(); ++p) {
      Piece piece = pieces_[p];
      piece.hf_name = ending.beside(piece.hf_name);
      piece.hf_shape = parts[p].grid.shape;
      piece.correspondence = std::move(grid.parts[p].of);
      piece.native_box = std::move(grid.parts[p].native_box);
      piece.as_stored = true;
      tensor.pieces.push_back(std::move(piece));
    }
    return tensor;
  }

  const NativeTensor& native_;
  std::vector<Piece> pieces_;
  std::map<const Rule*, std::vector<StoredTensor>> of_rules_;
};

/// What to do about a weight that cannot be held packed.
std::string refusal(const std::string& fqn, const std::string& fault) {
  return fqn + ": cannot be held packed: " + fault +
         "; hold it in BF16, F16 or F32, which decodes it, or load it under layout \"huggingface\", the "
         "files' own "
         "names and shapes";
}

/// The codes of these tensors, as the units that files hold.
void see_in_units(Catalog& catalog, const PackedTensors& packed) {
  std::set<std::string_view> names;
  for (const auto& [fqn, tensor] : packed.tensors) {
    if (fqn != tensor.weight) continue;
    for (const Piece& piece : tensor.pieces) names.insert(piece.hf_name);
  }
  for (SourceTensor& tensor : catalog.tensors) {
    if (is_packed(tensor.dtype) && names.contains(tensor.name)) tensor = in_units(std::move(tensor));
  }
}

Packed with(const Catalog& catalog, const WeightMap& map, PackedTensors packed,
            std::vector<std::string> problems) {
  Packed all{catalog, map, std::move(problems)};
  see_in_units(all.catalog, packed);
  all.map.packed = std::make_shared<const PackedTensors>(std::move(packed));
  return all;
}

/// Names of HF tensors that a decoded weight reads and a packed one too: they cannot be seen as both.
std::vector<std::string> seen_as_both(const PackedTensors& packed, const std::set<std::string>& decoded) {
  std::set<std::string_view> in_units;
  std::vector<std::string> problems;
  for (const auto& [fqn, tensor] : packed.tensors) {
    if (fqn != tensor.weight || decoded.contains(fqn)) continue;
    for (const Piece& piece : tensor.pieces) in_units.insert(piece.hf_name);
  }
  for (const std::string& fqn : decoded) {
    const auto tensor = packed.tensors.find(fqn);
    if (tensor == packed.tensors.end()) continue;
    for (const Piece& piece : tensor->second.pieces) {
      if (!in_units.contains(piece.hf_name)) continue;
      problems.push_back(fqn + ": is decoded, but " + piece.hf_name +
                         " is another tensor's, too, which is packed; hold both in the same way");
      break;
    }
  }
  return problems;
}

}  // namespace

PackedTensors packed_tensors(const Catalog& catalog, const WeightMap& map) {
  PackedTensors packed;
  packed.rules = std::make_shared<const WeightMap>(map);
  for (const NativeTensor& native : native_tensors(catalog, *packed.rules)) {
    std::vector<Piece> pieces = pieces_of(*packed.rules, native.fqn, native.shape, &catalog);
    if (std::none_of(pieces.begin(), pieces.end(),
                     [&](const Piece& piece) { return is_encoded(catalog, piece); }))
      continue;
    try {
      for (PackedTensor& tensor : PackedWeight(catalog, native, std::move(pieces)).tensors()) {
        std::string name = tensor.native.fqn;
        packed.tensors.emplace(std::move(name), std::move(tensor));
      }
    } catch (const Error& error) {
      packed.faults.emplace(native.fqn, error.what());
    }
  }
  return packed;
}

Packed as_packed(const Catalog& catalog, const WeightMap& map, const HeldDtypes& held) {
  PackedTensors packed = packed_tensors(catalog, map);
  std::vector<std::string> problems;
  for (const auto& [fqn, fault] : packed.faults) {
    const auto found = held.find(fqn);
    if (found != held.end() && !is_wide_float(found->second)) problems.push_back(refusal(fqn, fault));
  }
  std::set<std::string> decoded;
  for (const auto& [fqn, tensor] : packed.tensors) {
    const auto found = held.find(tensor.weight);
    if (found == held.end()) continue;
    if (is_wide_float(found->second)) {
      decoded.insert(tensor.weight);
    } else if (tensor.is_needed && !held.contains(fqn)) {
      problems.push_back(tensor.weight + ": holds packed codes, which " + fqn + " decodes; expected that, " +
                         std::string(name_of(tensor.native.dtype)) + " of shape " +
                         to_string(tensor.native.shape) + ", beside it, found no tensor of that name");
    }
  }
  for (std::string& problem : seen_as_both(packed, decoded)) problems.push_back(std::move(problem));
  std::erase_if(packed.tensors, [&](const auto& named) {
    const auto& [fqn, tensor] = named;
    return decoded.contains(tensor.weight) && (fqn == tensor.weight || !held.contains(fqn));
  });
  return with(catalog, map, std::move(packed), std::move(problems));
}

Packed as_packed(const Catalog& catalog, const WeightMap& map) {
  PackedTensors packed = packed_tensors(catalog, map);
  Problems problems;
  for (const auto& [fqn, fault] : packed.faults) problems.add(refusal(fqn, fault));
  problems.throw_if_any(ErrorKind::mismatch, "not all weights of " + catalog.directory.string() +
                                                 " can be held packed in layout " + map.layout + ":");
  return with(catalog, map, std::move(packed), {});
}

}  // namespace shardwright
