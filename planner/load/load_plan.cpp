#include "planner/load/load_plan.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "kernels/decode.h"
#include "planner/load/rest_of_checkpoint.h"
#include "planner/load/scaled_parts.h"
#include "planner/load/seen_boxes.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/names/packed_weights.h"
#include "planner/names/quantization_config.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/tied_heads.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

std::uint32_t index_of(const Catalog& catalog, const SourceTensor& tensor) {
  return static_cast<std::uint32_t>(&tensor - catalog.tensors.data());
}

/// Why elements that are stored so cannot become the trainer's, for messages; empty: they can.
std::string fault_of_decoding(const Encoding& encoding, DType destination) {
  const std::string element(name_of(encoding.element));
  if (bytes_of(encoding.element) == 0 && !encoding.scaled)
    return "cannot load the packed format " + element + "; expected a dtype of whole bytes";
  if (encoding.scaled ? is_wide_float(destination) : can_convert(encoding.element, destination)) return "";
  return "cannot turn " + element + (encoding.scaled ? " with scales" : "") + " into the trainer's " +
         std::string(name_of(destination)) + "; expected BF16, F16, F32" +
         (encoding.scaled ? " or F64" : ", F64 or the same dtype");
}

/// Where a piece lies, as messages begin.
std::string place_of(const TensorSpec& spec, const Piece& piece, const Catalog& catalog,
                     const SourceTensor& chunk) {
  return spec.fqn + ": " + piece.hf_name + " in " + catalog.files[chunk.file].name;
}

class LoadPlanner {
 public:
  LoadPlanner(const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map,
              const LoadPlanOptions& options)
      : specs_(specs),
        catalog_(catalog),
        map_(map),
        options_(options),
        encodings_(options.resuming               ? known_exact_encodings()
                   : options.encodings != nullptr ? *options.encodings
                                                  : known_encodings()),
        used_(catalog.tensors.size(), false) {}

  LoadPlan plan() {
    const auto begin = std::chrono::steady_clock::now();
    problems_.lines = options_.problems;
    const bool writes_once = !options_.exporting && !options_.resuming;
    std::vector<const TensorSpec*> wanted;  // but for those that share memory with what they are read from
    for (const TensorSpec& spec : specs_) {
      if (!writes_once || !is_filled_by_another(spec)) wanted.push_back(&spec);
    }
    if (writes_once) {  // first, as of many lines only the first are told
      for (std::string& fault : shared_memory(std::span<const TensorSpec* const>(wanted)))
        problems_.add(std::move(fault));
    }
    for (const TensorSpec* const spec : wanted)
      add_destination(static_cast<std::uint32_t>(spec - specs_.data()));
    RestOfCheckpoint rest = rest_of_checkpoint(specs_, catalog_, map_, used_, options_);
    plan_.unused = std::move(rest.unused);
    plan_.unknown = std::move(rest.unknown);
    for (std::string& fault : rest.faults) problems_.add(std::move(fault));
    if (writes_once && !catalog_.fault_of_config.empty())
      problems_.of_all.push_back(catalog_.fault_of_config);
    if (is_nested_) {
      problems_.of_all.push_back("the checkpoint has all of these without \"" + prefix_ +
                                 ".\" before their names: load into the inner dict, state_dict['" + prefix_ +
                                 "'], or take that from the names");
    }
    const std::string directory = options_.what.empty() ? catalog_.directory.string() : options_.what;
    problems_.throw_if_any(
        ErrorKind::mismatch,
        (options_.exporting ? "cannot export these tensors with the names and shapes of " + directory
                            : "cannot load " + directory + " into these tensors") +
            " (layout " + map_.layout + "); nothing has been written:");
    order_and_count(plan_, specs_, catalog_);
    plan_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(plan_);
  }

 private:
  void add_destination(std::uint32_t index) {
    const TensorSpec& spec = specs_[index];
    if (std::string fault = fault_of(spec, options_.exporting); !fault.empty()) {
      problems_.add(spec.fqn + ": " + fault);
      return;
    }
    std::vector<Piece> pieces;
    try {
      pieces = pieces_of(map_, spec.fqn, spec.global_shape, &catalog_);
    } catch (const Error& error) {
      problems_.add(error.what());
      return;
    }
    if (pieces.empty() && !(volume(spec.global_shape) == 0 && names_a_stack(spec))) {
      if (options_.allow_missing) {
        plan_.not_loaded.push_back(spec.fqn);
      } else {
        problems_.add(spec.fqn + ": no rule of " + map_.family + " has a source for it");
        look_for_prefix(spec);
      }
      return;
    }
    // What another tensor is stored as is not stored twice.
    if (options_.exporting && !pieces.empty() && pieces.front().rule->only_read) return;
    const std::size_t first_transfer = plan_.transfers.size();
    if (!add_pieces(index, pieces)) return;
    const bool rest_is_zero = !pieces.empty() && pieces.front().rule->rest_is_zero;
    prove_coverage(spec, first_transfer, rest_is_zero && !options_.exporting);
    // Written to a file a second time, from the same elements.
    for (const Piece& piece : pieces) {
      if (piece.rule->repeats && options_.exporting) add_piece(index, piece, catalog_.find(piece.hf_name));
    }
  }

  /// A tied head: the same memory, and the same source, as another tensor's of the trainer, in which it is
  /// loaded.
  bool is_filled_by_another(const TensorSpec& spec) const {
    if (spec.data == nullptr) return false;
    const auto is_only_read = [](const Rule& rule) { return rule.only_read; };
    const auto tied = std::find_if(map_.rules.begin(), map_.rules.end(), [&](const Rule& rule) {
      return is_only_read(rule) && rule.native.match(spec.fqn).has_value();
    });
    if (tied == map_.rules.end()) return false;
    for (const NameMatch& match :
         native_matches_of(map_, to_checkpoint_spelling(map_.dialect, tied->hf.text()))) {
      for (const TensorSpec& other : specs_) {
        if (other.fqn == match.fqn && other.fqn != spec.fqn && is_same_memory(other, spec)) return true;
      }
    }
    return false;
  }

  /// A stacked tensor of no experts has no pieces and needs none.
  bool names_a_stack(const TensorSpec& spec) const {
    return std::any_of(map_.rules.begin(), map_.rules.end(),
                       [&](const Rule& rule) { return rule.stacked() && rule.native.match(spec.fqn); });
  }

  /// False if a piece is missing or does not fit, which has then been noted.
  bool add_pieces(std::uint32_t index, const std::vector<Piece>& pieces) {
    const TensorSpec& spec = specs_[index];
    bool complete = true;
    std::map<const Rule*, std::vector<const Piece*>> missing_pieces;
    std::size_t missing = 0;
    for (const Piece& piece : pieces) {
      const std::span<const SourceTensor> chunks = catalog_.find(piece.hf_name);
      if (chunks.empty()) {
        if (options_.parts_elsewhere &&
            std::none_of(spec.boxes.begin(), spec.boxes.end(),
                         [&](const LocalBox& local) { return may_touch(piece, local.global); }))
          continue;
        missing_pieces[piece.rule].push_back(&piece);
        ++missing;
        continue;
      }
      for (const SourceTensor& chunk : chunks) used_[index_of(catalog_, chunk)] = true;
      if (!piece.rule->repeats || !options_.exporting) complete &= add_piece(index, piece, chunks);
    }
    if (missing == 0) return complete;
    if (missing == pieces.size() && options_.allow_missing) {
      plan_.not_loaded.push_back(spec.fqn);
      return false;
    }
    if (missing == pieces.size() && may_be_absent(map_, spec.fqn)) {
      if (!options_.exporting) plan_.zeros.push_back(index);
      return false;
    }
    for (const auto& [rule, of_rule] : missing_pieces) note_missing(spec, *rule, of_rule);
    if (missing == pieces.size()) look_for_prefix(spec);
    return false;
  }

  void note_missing(const TensorSpec& spec, const Rule& rule, const std::vector<const Piece*>& pieces) {
    if (!rule.stacked()) {
      for (const Piece* piece : pieces) {
        const std::string unknown = unknown_encoding_of(catalog_, piece->hf_name);
        problems_.add(spec.fqn + ": the checkpoint lacks " + piece->hf_name + (unknown.empty() ? "" : ": ") +
                      unknown);
      }
      return;
    }
    std::string name = pieces.front()->hf_name;
    std::vector<std::int64_t> experts;
    for (const Piece* piece : pieces) {
      if (experts.empty() || experts.back() != piece->expert) experts.push_back(piece->expert);
    }
    if (experts.size() > 1) {
      const std::string number = "." + std::to_string(experts.front()) + ".";
      name.replace(name.rfind(number), number.size(), ".{" + ranges_of(experts) + "}.");
    }
    problems_.add(spec.fqn + ": expected " + std::to_string(spec.global_shape[0]) +
                  " experts, but the checkpoint lacks " + name);
  }

  /// Finds out whether the state dict is nested: the checkpoint has all tensors that it seems to lack,
  /// without the first part of their names, which is the same for all.
  void look_for_prefix(const TensorSpec& spec) {
    const std::size_t dot = spec.fqn.find('.');
    const std::string prefix = dot == std::string::npos ? "" : spec.fqn.substr(0, dot);
    const bool is_first = !has_looked_;
    if (!is_first && !is_nested_) return;
    has_looked_ = true;
    is_nested_ = false;
    if (prefix.empty() || (!is_first && prefix != prefix_)) return;
    prefix_ = prefix;
    try {
      const std::vector<Piece> pieces =
          pieces_of(map_, spec.fqn.substr(dot + 1), spec.global_shape, &catalog_);
      is_nested_ = !pieces.empty() && !catalog_.find(pieces.front().hf_name).empty();
    } catch (const Error&) {  // it is not the tensor of that name
    }
  }

  bool add_piece(std::uint32_t index, const Piece& piece, std::span<const SourceTensor> chunks) {
    const TensorSpec& spec = specs_[index];
    const Shape found = Catalog::global_shape(chunks);
    if (found != piece.hf_shape) {
      problems_.add(place_of(spec, piece, catalog_, chunks.front()) + ": expected shape " +
                    to_string(piece.hf_shape) + " for the trainer's " + to_string(spec.global_shape) +
                    ", found " + to_string(found));
      return false;
    }
    if (piece.rule->repeats && !options_.exporting) return true;
    const bool is_multiplied = !piece.multiplier.empty() && !options_.exporting;
    const std::span<const SourceTensor> multiplier =
        is_multiplied ? catalog_.find(piece.multiplier) : std::span<const SourceTensor>();
    if (is_multiplied && multiplier.empty()) {
      problems_.add(place_of(spec, piece, catalog_, chunks.front()) + ": the checkpoint lacks " +
                    piece.multiplier + ", which multiplies it");
      return false;
    }
    const std::optional<Encoding> known = encoding_for(spec, piece, chunks, multiplier);
    if (!known) return false;
    const Encoding& encoding = *known;
    std::span<const SourceTensor> scales;
    if (encoding.scaled) scales = is_multiplied ? multiplier : scales_of(catalog_, piece.hf_name);
    const bool in_own_shape =
        encoding.scaled && (options_.exporting || chunks.size() > 1 || scales.size() > 1 ||
                            !can_see_scales(encoding, piece.correspondence->hf_view.sizes, found));
    for (const LocalBox& local : spec.boxes) {
      if (!may_touch(piece, local.global)) continue;
      const auto add = [&](const SourceTensor& chunk, Placed placed) {
        for (SeenBox& seen : seen_in(chunk, piece.correspondence->hf_view, std::move(placed), in_own_shape))
          add_box(index, local, encoding, chunk, scales, found, std::move(seen));
      };
      for (Placed& placed : placed_in(piece, local.global)) {
        for (const SourceTensor& chunk : chunks.first(chunks.size() - 1)) add(chunk, placed);
        add(chunks.back(), std::move(placed));
      }
    }
    return true;
  }

  /// How the elements of a piece are stored; nothing if the trainer's tensor cannot have them, which has then
  /// been noted.
  std::optional<Encoding> encoding_for(const TensorSpec& spec, const Piece& piece,
                                       std::span<const SourceTensor> chunks,
                                       std::span<const SourceTensor> multiplier) {
    const DType stored = chunks.front().dtype;
    const auto refused = [&](const std::string& fault) {
      problems_.add(place_of(spec, piece, catalog_, chunks.front()) + ": " + fault);
      return std::nullopt;
    };
    Encoding encoding{spec.dtype, false, DType::U8, 1, 1};
    const bool as_it_is = piece.as_stored || (options_.resuming && stored == spec.dtype);
    if (piece.as_stored && stored != spec.dtype) {
      return refused("expected " + std::string(name_of(stored)) +
                     ", as it is held packed, found the trainer's " + std::string(name_of(spec.dtype)));
    }
    if (options_.resuming && !as_it_is) {
      const std::string codes_of = weight_in(catalog_, chunks.front());
      const std::string scales =
          codes_of.empty() ? what_decodes(catalog_, chunks.front()) : codes_of + "_scale";
      if (!scales.empty()) {
        return refused("holds packed codes, which " + scales + " decodes, and no numbers; expected " +
                       std::string(name_of(stored)) + ", which gets them as they are, found the trainer's " +
                       std::string(name_of(spec.dtype)));
      }
    }
    if (!as_it_is) {
      try {
        encoding = encoding_of(catalog_, chunks, encodings_);
        if (!multiplier.empty()) encoding = multiplied_by(catalog_, chunks, multiplier);
      } catch (const Error& error) {
        if (is_news(piece.hf_name)) problems_.add(spec.fqn + ": " + error.what());
        return std::nullopt;
      }
    }
    if (const std::string fault = fault_of_decoding(encoding, spec.dtype); !fault.empty())
      return refused(fault);
    return encoding;
  }

  void add_box(std::uint32_t index, const LocalBox& local, const Encoding& encoding,
               const SourceTensor& chunk, std::span<const SourceTensor> scales, const Shape& hf_shape,
               SeenBox seen) {
    Transfer all;
    all.source = index_of(catalog_, chunk);
    all.encoding = encoding;
    all.source_view = std::move(seen.view);
    all.source_box = std::move(seen.box);
    all.destination = index;
    all.destination_offset = std::move(seen.in_native.first);
    for (std::size_t d = 0; d < local.local_offset.size(); ++d)
      all.destination_offset[d] += local.local_offset[d];
    all.axes = std::move(seen.in_native.axes);
    const Shape& steps = seen.in_native.steps;
    if (std::any_of(steps.begin(), steps.end(), [](std::int64_t step) { return step != 1; }))
      all.steps = steps;
    if (!encoding.scaled) {
      plan_.transfers.push_back(std::move(all));
      return;
    }
    if (const auto global = global_scale_of(catalog_, encoding, chunk.name); !global.empty())
      all.global = index_of(catalog_, global.front());
    if (!all.source_view.empty()) {
      all.encoding.scale_rank = static_cast<int>(all.source_view.size());
      all.scales = index_of(catalog_, scales.front());
      all.scale_box = scale_box_of(all.encoding, all.source_box);
      all.first_column_in_block = all.source_box.offset.back() % encoding.block_columns;
      plan_.transfers.push_back(std::move(all));
      return;
    }
    Box in_tensor = all.source_box;
    for (std::size_t d = 0; d < in_tensor.offset.size(); ++d) in_tensor.offset[d] += chunk.offset[d];
    const auto add = [&](Transfer transfer, ScaledPart& part) {
      for (std::size_t d = 0; d < in_tensor.offset.size(); ++d) {
        if (transfer.axes[d] < 0) continue;
        transfer.destination_offset[static_cast<std::size_t>(transfer.axes[d])] +=
            steps[d] * (part.box.offset[d] - in_tensor.offset[d]);
      }
      transfer.source_box = std::move(part.box);
      for (std::size_t d = 0; d < in_tensor.offset.size(); ++d)
        transfer.source_box.offset[d] -= chunk.offset[d];
      transfer.scales = index_of(catalog_, *part.scales);
      transfer.scale_box = std::move(part.scale_box);
      transfer.first_row_in_block = part.first_row_in_block;
      transfer.first_column_in_block = part.first_column_in_block;
      plan_.transfers.push_back(std::move(transfer));
    };
    std::vector<ScaledPart> parts = scaled_parts(encoding, in_tensor, hf_shape, scales);
    if (parts.empty()) return;
    for (std::size_t p = 0; p + 1 < parts.size(); ++p) add(all, parts[p]);
    add(std::move(all), parts.back());
  }

  /// Every element of the local tensor is written exactly once by the transfers from `first` on; with
  /// `rest_is_zero`, at most once.
  void prove_coverage(const TensorSpec& spec, std::size_t first, bool rest_is_zero) {
    const std::span<const Transfer> transfers(plan_.transfers.begin() + static_cast<std::ptrdiff_t>(first),
                                              plan_.transfers.end());
    const std::string fault = rest_is_zero ? overlap_fault(spec.local_shape, lattices_written(transfers))
                                           : fault_of_writing(spec.local_shape, transfers);
    if (!fault.empty()) problems_.add(spec.fqn + ": " + fault);
  }

  bool is_news(const std::string& name) { return noted_.insert(name).second; }

  const std::vector<TensorSpec>& specs_;
  const Catalog& catalog_;
  const WeightMap& map_;
  const LoadPlanOptions& options_;
  const std::vector<KnownEncoding>& encodings_;
  std::vector<bool> used_;  // by index into Catalog::tensors; of weights, with which their scales go
  std::unordered_set<std::string> noted_;
  bool has_looked_ = false;  // for what follows
  bool is_nested_ = false;   // the checkpoint has the missing tensors without "prefix_."
  std::string prefix_;
  Problems problems_;
  LoadPlan plan_;
};

}  // namespace

bool LoadPlan::operator==(const LoadPlan& other) const {
  const auto fields = [](const LoadPlan& plan) {
    return std::tie(plan.transfers, plan.tensors, plan.bytes_needed, plan.bytes_written, plan.unused,
                    plan.unknown, plan.not_loaded, plan.zeros);
  };
  return fields(*this) == fields(other);
}

LoadPlan plan_load(const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map,
                   const LoadPlanOptions& options) {
  return LoadPlanner(specs, catalog, map, options).plan();
}

}  // namespace shardwright
