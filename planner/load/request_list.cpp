#include "planner/load/request_list.h"

#include <algorithm>
#include <string>
#include <unordered_set>

#include "planner/geometry/correspondence.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/names/packed_weights.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

/// How the HF tensor is stored, or would be by the rule of names.
Encoding encoding_for(const Piece& piece, DType native, const Catalog* catalog) {
  if (piece.as_stored) return {native, false, DType::U8, 1, 1};
  if (catalog != nullptr) {
    const std::span<const SourceTensor> chunks = catalog->find(piece.hf_name);
    if (!chunks.empty()) return encoding_of(*catalog, chunks);
  } else if (piece.rule->quantized && piece.hf_shape.size() == 2) {
    return encoding_with(known_encodings().front(), piece.hf_shape);
  }
  return {native, false, DType::U8, 1, 1};
}

/// Whether the HF tensor is a box of the native one, its dimensions in some order.
bool is_box(const Piece& piece) {
  const std::vector<int>& axes = piece.correspondence->axes;
  return piece.is_plain() && piece.correspondence->hf_box.size == piece.hf_shape &&
         std::find(axes.begin(), axes.end(), -1) == axes.end();
}

/// All that belongs to the weight that the last two entries are, and its scales: global scale, shape, scales
/// of activations.
void add_companions(const Catalog& catalog, std::vector<Request>& requests) {
  const std::string weight = requests.end()[-2].name;
  const std::string scales = requests.back().name;
  for (const std::string& name : companions_of(catalog, weight)) {
    if (name == scales) continue;
    Request request = requests.back();
    const std::span<const SourceTensor> companion = catalog.find(name);
    request.name = name;
    request.dtype = companion.front().dtype;
    request.shape = Catalog::global_shape(companion);
    requests.push_back(std::move(request));
  }
}

/// Gives a tensor the name, dtype and shape that the files have.
void as_stored(const Catalog& catalog, Request& request) {
  const std::span<const SourceTensor> chunks = catalog.find(request.name);
  if (chunks.empty() || chunks.front().stored == nullptr) return;
  const SourceTensor& tensor = chunks.front();
  request.name = tensor.stored->name;
  request.dtype = tensor.stored->dtype;
  request.shape = box_in_file(tensor, whole(request.shape)).size;
}

}  // namespace

std::vector<Request> request_list(const std::vector<TensorSpec>& specs, const WeightMap& map,
                                  const Catalog* catalog, const Catalog* shapes) {
  std::vector<Request> requests;
  std::unordered_set<std::string> asked;  // an HF tensor may be a part of several native ones
  for (const TensorSpec& spec : specs) {
    for (const Piece& piece :
         pieces_of(map, spec.fqn, spec.global_shape, shapes != nullptr ? shapes : catalog)) {
      const Box hull = hull_of(piece);
      if (!touches(spec, hull) || !asked.insert(piece.hf_name).second) continue;
      const Encoding encoding = encoding_for(piece, spec.dtype, catalog);
      requests.push_back({piece.hf_name, encoding.element, piece.hf_shape, false, spec.fqn, encoding.scaled,
                          hull, dimensions_of(piece), is_box(piece)});
      if (!piece.multiplier.empty() && asked.insert(piece.multiplier).second) {
        const Shape first(piece.hf_shape.begin(), piece.hf_shape.begin() + 1);
        const auto multiplier =
            catalog == nullptr ? std::span<const SourceTensor>() : catalog->find(piece.multiplier);
        requests.push_back({piece.multiplier, multiplier.empty() ? spec.dtype : multiplier.front().dtype,
                            first, true, spec.fqn, false, hull, dimensions_of(piece), is_box(piece)});
      }
      if (encoding.scaled) {
        requests.push_back({piece.hf_name + std::string(encoding.scale_suffix), encoding.scale,
                            scale_shape_of(encoding, piece.hf_shape), true, spec.fqn, false, hull,
                            dimensions_of(piece), is_box(piece)});
        if (catalog != nullptr) {
          requests.back().shape = Catalog::global_shape(scales_of(*catalog, piece.hf_name));  // or larger
          add_companions(*catalog, requests);
        }
      }
    }
  }
  for (Request& request : requests) {
    request.seen_name = request.name;
    request.seen_shape = request.shape;
    if (catalog != nullptr) as_stored(*catalog, request);
  }
  return requests;
}

}  // namespace shardwright
