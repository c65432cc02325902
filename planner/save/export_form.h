#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "planner/load/rounding.h"
#include "planner/names/catalog.h"
#include "planner/names/encodings.h"
#include "planner/names/rule_pieces.h"
#include "planner/save/quantization.h"

namespace shardwright {

/// A tensor of the trainer, apart from how it lies over the ranks.
struct SavedTensor {
  std::string fqn;
  DType dtype = DType::BF16;
  Shape shape;  ///< global

  bool operator==(const SavedTensor&) const = default;
};

/// What an export looks like on disk: whose names and dtypes, and how weights are quantized.
struct ExportForm {
  WeightMap map;
  const Catalog* template_catalog = nullptr;  ///< the template: a checkpoint with these names; null: none
  std::shared_ptr<const Catalog> packed_template = nullptr;  ///< that, where weights are held packed
  const Quantization* quantize =
      nullptr;  ///< of the weights that the template, or else the rule of names, has quantized; null: none
  bool by_rule_of_names =
      true;  ///< ... which is the rule's matter: there is no template, or none of its weights has scales

  /// Patterns (see fits_pattern) of HF names: of these matrices, and stacks of them, in place of the above.
  std::vector<std::string> weights;
  bool as_template = false;    ///< every weight in the template's encoding, with the template's scales
  bool strict = true;          ///< what the template has and the state dict lacks is an error
  bool strict_dtypes = false;  ///< a cast that loses bits is an error
  bool keeps_dtypes = false;   ///< without a template, every tensor is stored in the dtype that it has
};

/// Where the state dict holds weights packed (see as_packed()), these are stored as they are, and all others
/// in the template's encoding: one config.json tells of all. Throws Error(mismatch), naming the tensors, if a
/// packed weight lacks what decodes it, and if another encoding is asked for.
void keep_packed(ExportForm& form, const std::vector<SavedTensor>& tensors);

/// True if the template says which weights are block-scaled, by having scales.
bool has_scales(const Catalog& template_catalog);

/// How the HF tensor is stored.
///  * A weight that the template has scales for (without a template: that the rule of names counts; or that
///    `weights` names) is quantized if `quantize` is set, MXFP8's scales in the template's dtype; otherwise
///    one with scales is BF16.
///  * Every other one has the template's dtype. Without a template, the wide floats of a known model become
///    BF16 (not with `keeps_dtypes`), and all else stays what it is.
Encoding stored_as(const ExportForm& form, const Piece& piece, DType native);

/// The tables for state dicts that come without a template: see weight_map_by_native_names. `family` other
/// than "auto" decides. Throws Error(mismatch) if it cannot be told, or `quantize` is set and no family has a
/// rule that says what to quantize.
WeightMap weight_map_without_template(const std::vector<SavedTensor>& tensors, std::string_view family,
                                      std::string_view layout, bool quantize);

/// A small tensor that an export makes.
struct MadeTensor {
  enum class Kind : std::uint8_t {
    ones,          ///< 1 throughout
    global_scale,  ///< of the weight, by the rule
    shape,         ///< of the weight
  };
  std::string name;
  Kind kind = Kind::ones;
  std::string weight = {};     ///< its HF name; of `ones`: none
  DType values = DType::BF16;  ///< the dtype that the weight's values have in the state dict
};

/// The HF tensors of an export, scales directly behind their weights; no files or byte ranges yet.
struct ExportedTensors {
  std::vector<SourceTensor>
      tensors;  ///< in the order in which files hold them: the template's, else the state dict's
  std::vector<std::string> copied;    ///< names of those that are the template's, byte for byte
  std::vector<MadeTensor> made;       ///< those that no tensor of the state dict is in
  std::vector<std::string> left_out;  ///< the template's tensors that this layout has no place for, or
                                      ///< (strict = false) the state dict lacks; and tensors of the state
                                      ///< dict that the template has as another's, such as a tied head, or
                                      ///< not at all, since they begin at zero
  Roundings rounded;  ///< by the names of the state dict; MXFP8, which was asked for, is no cast
};

/// Throws one Error(mismatch) that lists what does not fit the template or cannot be stored so, and with
/// strict_dtypes what would be rounded.
ExportedTensors exported_tensors(const std::vector<SavedTensor>& tensors, const ExportForm& form);

}  // namespace shardwright
