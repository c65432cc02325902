#pragma once

#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// One entry of the request list: an HF tensor that a load asks for.
struct Request {
  std::string name;
  DType dtype;
  Shape shape;                 ///< GLOBAL shape, of weights and scales alike
  bool placeholder = false;    ///< scales: asked for whole, so that any shard of the weight finds its own
  std::string fqn;             ///< the native tensor that it goes into
  bool scaled = false;         ///< a weight whose scales are the next entry
  Box box;                     ///< of the native tensor that the weight fills
  std::vector<int> axes;       ///< HF dimension i runs along native dimension axes[i]; -1: along no one
  bool is_box = true;          ///< the HF tensor is that box, its dimensions in that order; else see HfParts
  std::string seen_name = {};  ///< by which rules know it: another than the file's where it is packed
  Shape seen_shape = {};       ///< likewise, in elements

  bool operator==(const Request&) const = default;
};

/// What to_hf(quantization=True) would ask for, as data: for each native tensor the HF tensors that this
/// rank's boxes touch, each block-scaled one followed by its scales. With a catalog, its scales decide what
/// is block-scaled; without, the documented rule of names does. Weights that the catalog lacks are asked for
/// all the same (a planner then says that they are missing). Names, dtypes and shapes are those of the files:
/// packed weights are bytes or words, and each weight has its scales, its global scale and all else that
/// belongs to it behind it. Nothing is allocated. `shapes` has the shapes of HF tensors that native ones do
/// not tell, where `catalog` is not to decide what is block-scaled.
std::vector<Request> request_list(const std::vector<TensorSpec>& specs, const WeightMap& map,
                                  const Catalog* catalog = nullptr, const Catalog* shapes = nullptr);

}  // namespace shardwright
