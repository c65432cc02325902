#include "planner/save/export_form.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "kernels/decode.h"
#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/geometry/lattice.h"
#include "planner/load/load_plan.h"
#include "planner/models/known_models.h"
#include "planner/names/companions.h"
#include "planner/names/held_tensors.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/packed_weights.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

bool is_of_a_model(const WeightMap& map) { return map.family != unchanged_names().family; }

/// Proves that the template has these tensors and no others, and returns what it has beyond them with cause.
std::vector<std::string> fit_to_template(const std::vector<SavedTensor>& tensors, const ExportForm& form) {
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const SavedTensor& tensor : tensors)
    specs.push_back(whole_tensor(tensor.fqn, tensor.dtype, tensor.shape));
  LoadPlanOptions options;
  options.exporting = true;
  options.strict = form.strict;
  LoadPlan plan = plan_load(specs, *form.template_catalog, form.map, options);
  std::vector<std::string> lacking;
  for (const std::string& name : plan.unused) {
    if (!is_without_place(form.map, name)) lacking.push_back(name);
  }
  if (form.strict) {
    Problems problems;
    for (const std::string& name : grouped_names(lacking)) {
      problems.add(name +
                   ": the template has it, but no tensor of the state dict; strict=False leaves it out");
    }
    problems.throw_if_any(ErrorKind::mismatch, "cannot export these tensors with the names of " +
                                                   form.template_catalog->directory.string() + " (layout " +
                                                   form.map.layout + "); nothing has been written:");
  }
  plan.unused.insert(plan.unused.end(), plan.unknown.begin(), plan.unknown.end());
  return plan.unused;
}

std::string fault_of_encoding(const ExportForm& form, const Encoding& encoding, const SavedTensor& tensor) {
  if (encoding.scaled ? can_encode(tensor.dtype) : can_convert(tensor.dtype, encoding.element)) return "";
  const std::string how = form.quantize != nullptr ? std::string(form.quantize->name)
                                                   : std::string(name_of(encoding.element)) + " with scales";
  return tensor.fqn + ": cannot store " + std::string(name_of(tensor.dtype)) + " as " +
         (encoding.scaled ? how + "; expected BF16, F16 or F32"
                          : std::string(name_of(encoding.element)) +
                                ", the template's dtype; expected that or another wide float");
}

/// The HF tensors of which several tensors of the state dict are parts.
class PartsOfTensors {
 public:
  /// `needs_one_dtype`: scales and codes depend on the dtype that the values have.
  explicit PartsOfTensors(bool needs_one_dtype) : needs_one_dtype_(needs_one_dtype) {}

  /// True if the HF tensor has not been met before.
  bool add(const Piece& piece, const Encoding& encoding, const SavedTensor& tensor, Problems& problems) {
    const std::string& fqn = tensor.fqn;
    const Correspondence& correspondence = *piece.correspondence;
    if (correspondence.hf_box == whole(correspondence.hf_view.sizes)) return true;
    const auto [found, is_new] =
        tensors_.try_emplace(piece.hf_name, Parts{piece.hf_shape, encoding, tensor.dtype, fqn, {}});
    Parts& parts = found->second;
    parts.rest_is_zero |= piece.rule->rest_is_zero;
    parts.boxes.push_back(lattice_of(correspondence.hf_view, correspondence.hf_box));
    if (parts.shape != piece.hf_shape) {
      problems.add(fqn + ": expected it to be a part of " + piece.hf_name + " of shape " +
                   to_string(parts.shape) + ", as " + parts.fqn + " is, found " + to_string(piece.hf_shape));
    } else if (parts.encoding != encoding) {
      problems.add(fqn + ": expected it to be stored as " + std::string(name_of(parts.encoding.element)) +
                   ", as " + parts.fqn + " is, which is another part of " + piece.hf_name + ", found " +
                   std::string(name_of(encoding.element)));
    } else if (needs_one_dtype_ && encoding.scaled && parts.values != tensor.dtype) {
      problems.add(fqn + ": expected " + std::string(name_of(parts.values)) + ", as " + parts.fqn +
                   " is, which is encoded as another part of " + piece.hf_name + ", found " +
                   std::string(name_of(tensor.dtype)));
    }
    return is_new;
  }

  /// Proves that the parts make up the tensors, but for what is zero.
  void expect_whole(Problems& problems) const {
    for (const auto& [name, parts] : tensors_) {
      const std::string fault = parts.rest_is_zero ? overlap_fault(parts.shape, parts.boxes)
                                                   : tiling_fault(parts.shape, parts.boxes);
      if (!fault.empty()) problems.add(name + ": expected the state dict to have all of its parts: " + fault);
    }
  }

 private:
  struct Parts {
    Shape shape;
    Encoding encoding;
    DType values;
    std::string fqn;  ///< of the first part
    std::vector<Lattice> boxes;
    bool rest_is_zero = false;
  };
  bool needs_one_dtype_;
  std::map<std::string, Parts> tensors_;
};

/// Whether the template has nothing of a tensor that may be absent.
bool lacks(const ExportForm& form, const SavedTensor& tensor, const std::vector<Piece>& pieces) {
  return form.template_catalog != nullptr && may_be_absent(form.map, tensor.fqn) &&
         std::all_of(pieces.begin(), pieces.end(),
                     [&](const Piece& piece) { return form.template_catalog->find(piece.hf_name).empty(); });
}

/// What multiplies the piece, as it is stored: with the template's dtype, or that of the weight.
SourceTensor multiplier_of(const Piece& piece, DType dtype, const ExportForm& form) {
  SourceTensor multiplier;
  multiplier.name = piece.multiplier;
  multiplier.dtype = dtype;
  multiplier.shape.assign(piece.hf_shape.begin(), piece.hf_shape.end() - 2);
  multiplier.offset.assign(multiplier.shape.size(), 0);
  if (form.template_catalog == nullptr) return multiplier;
  const std::span<const SourceTensor> stored = form.template_catalog->find(piece.multiplier);
  if (!stored.empty()) multiplier.dtype = stored.front().dtype;
  return multiplier;
}

/// What belongs to a weight of the template, as it is there; but for these.
void add_companions(const Catalog& template_catalog, const std::string& weight_name,
                    const std::map<std::string_view, std::string_view>& but, ExportedTensors& exported) {
  for (const std::string& name : companions_of(template_catalog, weight_name)) {
    if (but.contains(name)) continue;
    SourceTensor companion = template_catalog.find(name).front();
    companion.file = 0;
    companion.begin = companion.end = 0;
    companion.shape = Catalog::global_shape(template_catalog.find(name));
    exported.tensors.push_back(std::move(companion));
    exported.copied.push_back(name);
  }
}

/// Adds the template's scales of activations that the export does not have: weights by another rule, or in
/// BF16, take no such ones over.
void note_left_activations(const Catalog& template_catalog, ExportedTensors& exported) {
  std::unordered_set<std::string_view> written;
  for (const SourceTensor& tensor : exported.tensors) written.insert(tensor.name);
  const std::string* previous = nullptr;
  for (const SourceTensor& tensor : template_catalog.tensors) {
    const bool is_chunk = previous != nullptr && *previous == tensor.name;
    previous = &tensor.name;
    if (!is_chunk && !written.contains(tensor.name) && is_of_activations(template_catalog, tensor.name))
      exported.left_out.push_back(tensor.name);
  }
}

/// The state dict's packed tensors by the names of the HF tensors that they are made into. One number that
/// several of them hold, such as the scale of a fused weight that is several of the trainer's, is noted.
std::map<std::string_view, std::string_view> packed_names(const ExportForm& form,
                                                          const std::vector<SavedTensor>& tensors,
                                                          Problems& problems) {
  std::map<std::string_view, std::string_view> names;
  if (form.map.packed == nullptr) return names;
  for (const SavedTensor& tensor : tensors) {
    const auto packed = form.map.packed->tensors.find(tensor.fqn);
    if (packed == form.map.packed->tensors.end()) continue;
    for (const Piece& piece : packed->second.pieces) {
      const auto [other, is_new] = names.emplace(piece.hf_name, packed->first);
      const bool is_all = piece.correspondence->hf_box == whole(piece.correspondence->hf_view.sizes);
      if (is_new || !is_all || piece.rule->repeats) continue;
      problems.add(
          tensor.fqn + ": " + piece.hf_name + " is " + std::string(other->second) +
          ", too; expected one tensor that says it. Hold the weights decoded, in BF16 say, to export them");
    }
  }
  return names;
}

/// Whether the form has the HF tensor quantized anew.
bool is_quantized(const ExportForm& form, const Piece& piece) {
  if (form.quantize == nullptr) return false;
  if (!form.weights.empty()) {
    return piece.hf_shape.size() >= 2 &&
           std::any_of(form.weights.begin(), form.weights.end(),
                       [&](const std::string& pattern) { return fits_pattern(piece.hf_name, pattern); });
  }
  if (form.by_rule_of_names) return piece.rule->quantized && piece.hf_shape.size() == 2;
  return form.template_catalog != nullptr && !scales_of(*form.template_catalog, piece.hf_name).empty();
}

/// Adds the weight, and behind it what belongs to it: its scales, and what else the tool writes.
void add_quantized(const Quantization& quantization, const Encoding& encoding, SourceTensor weight,
                   DType values, ExportedTensors& exported) {
  store_as(quantization, weight);
  exported.tensors.push_back(weight);
  exported.tensors.push_back(scales_by(quantization, encoding, weight));
  const auto make = [&](std::string name, MadeTensor::Kind kind, DType dtype, Shape shape) {
    SourceTensor& made = exported.tensors.emplace_back();
    made.name = name;
    made.dtype = dtype;
    made.shape = std::move(shape);
    made.offset.assign(made.shape.size(), 0);
    exported.made.push_back({std::move(name), kind, weight.name, values});
  };
  if (quantization.has_global())
    make(weight.name + std::string(encoding.global_suffix), MadeTensor::Kind::global_scale, DType::F32,
         quantization.global_shape);
  if (quantization.has_shape) make(weight.name + "_shape", MadeTensor::Kind::shape, DType::I64, {2});
}

/// Tells what was asked to be quantized and is not there: silence would leave it in BF16.
void expect_quantized(const ExportForm& form, const std::vector<SourceTensor>& tensors, Problems& problems) {
  if (form.quantize == nullptr) return;
  const bool has_any = std::any_of(tensors.begin(), tensors.end(),
                                   [](const SourceTensor& tensor) { return is_scale_name(tensor.name); });
  if (form.weights.empty() && !has_any && problems.lines.empty()) {
    problems.add("quantization=\"" + std::string(form.quantize->name) +
                 "\": the template has no encoded weights, and releases of " + form.map.family +
                 " have none that these tensors are; name those that are meant with quantized_weights=");
  }
  for (const std::string& pattern : form.weights) {
    const bool is_met = std::any_of(tensors.begin(), tensors.end(), [&](const SourceTensor& tensor) {
      return tensor.shape.size() >= 2 && fits_pattern(tensor.name, pattern);
    });
    if (!is_met)
      problems.add("quantized_weights: no matrix of the export fits the pattern '" + pattern + "'");
  }
}

/// Why what goes under a name in BF16 cannot be stored as gpt-oss stores it, or the other way round: each
/// matrix of a stack is the other's transpose. Empty if it can.
std::string fault_of_transposing(const ExportForm& form, const Piece& piece, const Encoding& encoding) {
  if (!encoding.scaled || form.quantize == nullptr || piece.hf_name.ends_with(".weight")) return "";
  const bool to_blocks = form.quantize->rule == EncodingRule::mxfp4_gpt_oss;
  bool from_blocks = false;
  if (form.template_catalog != nullptr) {
    const std::span<const SourceTensor> stored = form.template_catalog->find(piece.hf_name);
    from_blocks = !stored.empty() && has_blocks(stored.front());
  } else if (!is_of_a_model(form.map) && piece.hf_shape.size() == 2) {
    return "";  // the caller's matrix is what it is
  }
  if (to_blocks == from_blocks) return "";
  return piece.hf_name +
         ": as mxfp4-gpt-oss a matrix is the transpose of what goes under this name otherwise; " +
         (to_blocks ? "give a template in MXFP4, or convert an export in BF16"
                    : "export with mxfp4-gpt-oss, or with a template in BF16");
}

/// Why a weight cannot be stored so with this template; empty if it can.
std::string fault_of_template(const ExportForm& form, const Piece& piece, const Encoding& encoding) {
  if (std::string fault = fault_of_transposing(form, piece, encoding); !fault.empty()) return fault;
  if (form.template_catalog == nullptr) return "";
  const std::span<const SourceTensor> stored = form.template_catalog->find(piece.hf_name);
  if (stored.empty()) return "";
  if (piece.as_stored)
    return stored.size() == 1 ? ""
                              : piece.hf_name +
                                    ": the template stores it in several chunks; expected a "
                                    "template of whole tensors";
  if (encoding.scaled && form.as_template &&
      (stored.size() > 1 || scales_of(*form.template_catalog, piece.hf_name).size() > 1))
    return piece.hf_name + ": the template stores it in several chunks; expected a template of whole tensors";
  if (!encoding.scaled && has_blocks(stored.front()))
    return piece.hf_name + ": the template has it in MXFP4, as " + stored_name(stored.front()) +
           ", where a matrix is the transpose of what goes under this name; export with " +
           "quantization=\"template\", or with a template in BF16";
  return "";
}

/// Puts tensors in the order of the template's files: companions with their weights, and first what it does
/// not have.
void order_as_template(const ExportForm& form, std::vector<SourceTensor>& tensors) {
  std::vector<std::tuple<std::uint32_t, std::uint64_t, std::size_t>> places;  // the file, where in it; which
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    std::span<const SourceTensor> stored;
    if (form.as_template) stored = form.template_catalog->find(tensors[t].name);
    if (stored.empty())
      stored = form.template_catalog->find(weight_name_of(weight_name_of_companion(tensors[t].name)));
    if (stored.empty())
      places.emplace_back(0, 0, t);  // a multiplier it does not have
    else
      places.emplace_back(stored.front().file, stored.front().begin, t);
  }
  std::sort(places.begin(), places.end());
  std::vector<SourceTensor> ordered;
  ordered.reserve(tensors.size());
  for (const auto& [file, begin, t] : places) ordered.push_back(std::move(tensors[t]));
  tensors = std::move(ordered);
}

}  // namespace

void keep_packed(ExportForm& form, const std::vector<SavedTensor>& tensors) {
  // What is held packed has codes, which no wide float is.
  const bool may_have_codes = std::any_of(tensors.begin(), tensors.end(), [](const SavedTensor& tensor) {
    return !is_wide_float(tensor.dtype) && bytes_of(tensor.dtype) <= bytes_of(DType::I32);
  });
  if (!may_have_codes || form.template_catalog == nullptr || !has_scales(*form.template_catalog)) return;
  HeldDtypes held;
  for (const SavedTensor& tensor : tensors) held.emplace(tensor.fqn, tensor.dtype);
  Packed packed = as_packed(*form.template_catalog, form.map, held);
  const bool any = std::any_of(tensors.begin(), tensors.end(), [&](const SavedTensor& tensor) {
    const auto found = packed.map.packed->tensors.find(tensor.fqn);
    return found != packed.map.packed->tensors.end() && found->second.native.dtype == tensor.dtype;
  });
  if (!any) return;
  Problems problems{std::move(packed.problems)};
  if (form.quantize != nullptr)
    problems.of_all.emplace_back(
        "some weights are packed, and are written as the template has them; expected "
        "quantization=\"template\" or None");
  problems.throw_if_any(ErrorKind::mismatch, "cannot export these tensors (layout " + form.map.layout +
                                                 "); nothing has been written:");
  form.as_template = true;
  form.map = std::move(packed.map);
  form.packed_template = std::make_shared<const Catalog>(std::move(packed.catalog));
  form.template_catalog = form.packed_template.get();
}

bool has_scales(const Catalog& template_catalog) {
  return std::any_of(template_catalog.tensors.begin(), template_catalog.tensors.end(),
                     [](const SourceTensor& tensor) { return is_scale_name(tensor.name); });
}

Encoding stored_as(const ExportForm& form, const Piece& piece, DType native) {
  Encoding plain{native, false, DType::U8, 1, 1};
  if (piece.as_stored) return plain;
  if (form.as_template && form.template_catalog != nullptr) {
    const std::span<const SourceTensor> stored = form.template_catalog->find(piece.hf_name);
    if (!stored.empty()) return encoding_of(*form.template_catalog, stored);
  }
  if (form.quantize != nullptr && is_quantized(form, piece)) {
    Encoding encoding = encoding_by(*form.quantize, piece.hf_shape);
    if (form.quantize->rule != EncodingRule::mxfp8 || form.template_catalog == nullptr) return encoding;
    const std::span<const SourceTensor> scales = scales_of(*form.template_catalog, piece.hf_name);
    if (!scales.empty() && scales.front().dtype == DType::F8_E8M0) encoding.scale = DType::F8_E8M0;
    return encoding;
  }
  if (form.template_catalog != nullptr) {
    const std::span<const SourceTensor> stored = form.template_catalog->find(piece.hf_name);
    const std::span<const SourceTensor> scales = scales_of(*form.template_catalog, piece.hf_name);
    if (!stored.empty()) plain.element = scales.empty() ? stored.front().dtype : DType::BF16;
    return plain;
  }
  if (!form.keeps_dtypes && is_of_a_model(form.map) && is_wide_float(native) &&
      !stays_wide(form.map, piece.hf_name))
    plain.element = DType::BF16;
  return plain;
}

WeightMap weight_map_without_template(const std::vector<SavedTensor>& tensors, std::string_view family,
                                      std::string_view layout, bool quantize) {
  std::vector<std::string> names;
  for (const SavedTensor& tensor : tensors) names.push_back(tensor.fqn);
  WeightMap map = family != "auto" ? weight_map_for_natives(names, family, layout)
                                   : weight_map_by_native_names(names, layout);
  if (layout != "huggingface") expect_no_other_layout(map, names);
  if (family != "auto") return map;
  if (quantize && !is_of_a_model(map)) {
    throw Error(ErrorKind::mismatch,
                "cannot say which weights MXFP8 is for: no family has names such as these in layout " +
                    std::string(layout) +
                    "; give a template that has scales, model= and layout=, or name them with "
                    "quantized_weights=");
  }
  return map;
}

ExportedTensors exported_tensors(const std::vector<SavedTensor>& tensors, const ExportForm& form) {
  ExportedTensors result;
  if (form.template_catalog != nullptr) result.left_out = fit_to_template(tensors, form);
  Problems problems;
  PartsOfTensors parts(form.quantize != nullptr && form.quantize->rule != EncodingRule::mxfp8);
  const auto packed = packed_names(form, tensors, problems);
  for (const SavedTensor& tensor : tensors) {
    const std::vector<Piece> pieces = pieces_of(form.map, tensor.fqn, tensor.shape, form.template_catalog);
    if (pieces.empty() && volume(tensor.shape) > 0) {
      problems.add(tensor.fqn + ": no rule of " + form.map.family + " has a name for it");
    }
    if (!pieces.empty() && pieces.front().rule->only_read) {
      result.left_out.push_back(tensor.fqn);
      continue;
    }
    if (lacks(form, tensor, pieces)) {
      result.left_out.push_back(tensor.fqn);
      continue;
    }
    std::string fault;
    for (const Piece& piece : pieces) {
      if (form.quantize != nullptr && is_quantized(form, piece)) {
        std::string unfit = fault_of_quantizing(*form.quantize, piece.hf_name, piece.hf_shape);
        if (!unfit.empty()) {
          problems.add(std::move(unfit));
          continue;
        }
      }
      const Encoding encoding = stored_as(form, piece, tensor.dtype);
      if (fault.empty()) fault = fault_of_template(form, piece, encoding);
      if (fault.empty()) fault = fault_of_encoding(form, encoding, tensor);
      if (!encoding.scaled) note_cast(result.rounded, tensor.fqn, tensor.dtype, encoding.element);
      if (!parts.add(piece, encoding, tensor, problems)) continue;
      SourceTensor weight;
      weight.name = piece.hf_name;
      weight.dtype = encoding.element;
      weight.shape = piece.hf_shape;
      weight.offset.assign(weight.shape.size(), 0);
      if ((encoding.scaled || piece.as_stored) && form.as_template)
        weight.stored = form.template_catalog->find(piece.hf_name).front().stored;
      if (encoding.scaled && !form.as_template) {
        add_quantized(*form.quantize, encoding, std::move(weight), tensor.dtype, result);
      } else {
        result.tensors.push_back(std::move(weight));
      }
      if (!piece.multiplier.empty()) {
        result.tensors.push_back(
            multiplier_of(piece, encoding.scaled ? DType::BF16 : encoding.element, form));
        result.made.push_back({piece.multiplier});
      }
      if (piece.as_stored) add_companions(*form.template_catalog, piece.hf_name, packed, result);
      if (encoding.scaled && form.as_template)
        add_companions(*form.template_catalog, piece.hf_name, {}, result);
    }
    if (!fault.empty()) problems.add(fault);
  }
  parts.expect_whole(problems);
  expect_quantized(form, result.tensors, problems);
  if (form.strict_dtypes) {
    for (const std::string& line : lines_of(result.rounded)) {
      problems.add(line + "; strict_dtypes=False rounds, a template with a wider dtype keeps all");
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot export these tensors (layout " + form.map.layout +
                                                 "); nothing has been written:");
  if (form.template_catalog != nullptr) {
    note_left_activations(*form.template_catalog, result);
    order_as_template(form, result.tensors);
  }
  return result;
}

}  // namespace shardwright
