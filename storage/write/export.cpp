#include "storage/write/export.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/load/load_plan.h"
#include "planner/models/models.h"
#include "planner/names/shared_inputs.h"
#include "planner/names/spec_parts.h"
#include "planner/names/torch_dtypes.h"
#include "planner/problems.h"
#include "planner/save/export_form.h"
#include "planner/save/export_wire.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "storage/boxes/placing.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/content_words.h"
#include "storage/format/row_checksums.h"
#include "storage/lora/adapter_file.h"
#include "storage/write/cut_block_scales.h"
#include "storage/write/export_writer.h"
#include "storage/write/find_numbers.h"

namespace shardwright {
namespace {

ExportForm form_of_adapter(const AdapterForm& adapter) {
  ExportForm form;
  form.map = adapter.map;
  form.keeps_dtypes = true;
  return form;
}

AdapterForm adapter_of(const ExportRequest& request, const std::vector<SavedTensor>& tensors) {
  std::vector<NativeTensor> natives;
  for (const SavedTensor& tensor : tensors)
    natives.push_back({tensor.fqn, tensor.dtype, tensor.shape, false});
  return adapter_form(natives, *request.adapter);
}

ExportForm form_of(const ExportRequest& request, const std::vector<SavedTensor>& tensors) {
  ExportForm form;
  form.template_catalog = request.template_catalog;
  form.quantise = request.quantise;
  form.weights = request.quantised_weights;
  form.as_template = request.as_template;
  form.strict = request.strict;
  form.strict_dtypes = request.strict_dtypes;
  form.by_rule_of_names = request.template_catalog == nullptr || !has_scales(*request.template_catalog);
  if (request.map != nullptr) {
    form.map = *request.map;
  } else if (request.template_catalog != nullptr) {
    form.map = weight_map_for(*request.template_catalog, request.model, request.layout);
  } else {
    form.map = weight_map_without_template(tensors, request.model, request.layout,
                                           request.quantise != nullptr && request.quantised_weights.empty());
  }
  keep_packed(form, tensors);
  return form;
}

std::string digest_of(std::string_view text) {
  std::string digits;
  for (const char byte : hash_of(text)) {
    constexpr std::string_view hex = "0123456789abcdef";
    digits += {hex[static_cast<unsigned char>(byte) >> 4], hex[static_cast<unsigned char>(byte) & 15]};
  }
  return digits;
}

std::string digest_of(const WeightMap* map) {
  if (map == nullptr) return "none";
  std::string text;
  for (const Rule& rule : map->rules)
    text += rule.hf.text() + " " + rule.native.text() + " " + rule.axes.text() + "\n";
  return digest_of(text);
}

/// All of a request that files depend on, in words. Each rank lays them out by its own, so that they must be
/// asked for the same.
std::vector<std::string> words_of(const ExportRequest& request) {
  std::string files;
  for (const auto& [name, number] : request.file_numbers) files += name + " " + std::to_string(number) + "\n";
  std::string patterns;
  for (const std::string& pattern : request.quantised_weights)
    patterns += (patterns.empty() ? "" : " ") + pattern;
  std::vector<std::string> words{
      "model " + request.model,
      "layout " + request.layout,
      std::string("quantization ") + (request.as_template           ? "template"
                                      : request.quantise != nullptr ? std::string(request.quantise->name)
                                                                    : "none"),
      "quantized_weights " + (patterns.empty() ? "none" : patterns),
      std::string("strict ") + (request.strict ? "true" : "false"),
      std::string("strict_dtypes ") + (request.strict_dtypes ? "true" : "false"),
      "max_shard_size " + std::to_string(request.max_file_bytes),
      "file numbers " + (files.empty() ? "none" : digest_of(files)),
      "rules " + digest_of(request.map),
  };
  if (request.template_catalog != nullptr) {
    for (const std::string& word : content_words(*request.template_catalog, 0))
      words.push_back("template's " + word);
  }
  if (!request.adapter) return words;
  const AdapterAsked& adapter = *request.adapter;
  words.push_back("adapter's model " + adapter.model);
  words.push_back("adapter's layout " + adapter.layout);
  words.push_back(std::string("text_only ") + (adapter.text_only ? "true" : "false"));
  words.push_back("param_wrapper " + std::string(name_of(adapter.sense)));
  words.push_back("alpha " + std::to_string(adapter.alpha));
  words.push_back(std::string("use_rslora ") + (adapter.use_rslora ? "true" : "false"));
  words.push_back("base_model " + adapter.base_model);
  words.push_back("task_type " + adapter.task_type.value_or("none"));
  return words;
}

/// Throws Error(mismatch) that names the ranks whose arguments are others.
void expect_asked_alike(const std::vector<std::vector<std::string>>& ranks) {
  Problems problems{differences_of_ranks(ranks)};
  problems.throw_if_any(ErrorKind::mismatch,
                        "the ranks have been given different arguments; nothing has been written:");
}

std::vector<SavedTensor> tensors_of(const std::vector<TensorSpec>& specs) {
  std::vector<SavedTensor> tensors;
  for (const TensorSpec& spec : specs) tensors.push_back({spec.fqn, spec.dtype, spec.global_shape});
  return tensors;
}

/// The names of a state's values, holding by holding.
std::vector<std::string_view> names_of(const RankState& state, const ValuesByHash& known) {
  std::vector<std::string_view> names;
  for (const RankState::Holding& holding : state.holdings) {
    for (const SavedValue& value : known.at(holding.values)->values) names.push_back(value.fqn);
  }
  return names;
}

/// The numbers of the state's values in the order of the specs; empty if they are in it.
std::vector<std::uint32_t> order_of(const std::vector<TensorSpec>& specs, const RankState& state) {
  ValuesByHash known;
  learn_values(state, known);
  std::unordered_map<std::string_view, std::uint32_t> numbers;
  for (const std::string_view name : names_of(state, known))
    numbers.emplace(name, static_cast<std::uint32_t>(numbers.size()));
  std::vector<std::uint32_t> order;
  std::vector<bool> seen(numbers.size(), false);
  for (const TensorSpec& spec : specs) {
    const auto found = numbers.find(spec.fqn);
    if (found == numbers.end())
      throw Error(ErrorKind::argument, spec.fqn + ": is not in what this rank says that it holds");
    if (seen[found->second]) continue;
    seen[found->second] = true;
    order.push_back(found->second);
  }
  for (std::uint32_t n = 0; n < seen.size(); ++n) {
    if (!seen[n]) order.push_back(n);
  }
  return std::is_sorted(order.begin(), order.end()) ? std::vector<std::uint32_t>() : order;
}

/// What all ranks have told.
struct AllHoldings {
  std::vector<RankState> states;
  std::vector<std::vector<std::uint32_t>> orders;
  std::vector<std::vector<BlockColumn>> columns;
  std::vector<std::vector<WeightNumbers>> numbers;
  std::vector<std::vector<std::string>> asked;
  ValuesByHash known;
};

AllHoldings all_holdings(const std::vector<std::string>& told) {
  AllHoldings all;
  std::vector<std::string> states;
  for (const std::string& bytes : told) {
    ExportHoldings of_rank = decode_holdings(bytes);
    states.push_back(std::move(of_rank.state));
    all.orders.push_back(std::move(of_rank.order));
    all.columns.push_back(std::move(of_rank.columns));
    all.numbers.push_back(std::move(of_rank.numbers));
    all.asked.push_back(std::move(of_rank.asked));
  }
  all.states = decode_states(states, all.known);
  return all;
}

/// All tensors, in the order in which ranks 0, 1, ... have them in their state dicts.
std::vector<SavedTensor> tensors_of(const AllHoldings& all, const SavedValues& values) {
  std::unordered_map<std::string_view, SavedTensor> by_name;
  Problems problems;
  for (const SavedValue& value : values.values) {
    const std::optional<DType> dtype = dtype_of_torch(value.properties.dtype);
    if (value.kind == SavedValue::Kind::object) {
      problems.add(value.fqn +
                   ": expected a tensor, since an HF checkpoint holds no others, found an object");
    } else if (!dtype) {
      problems.add(value.fqn + ": " + value.properties.dtype + " is a dtype that safetensors does not have");
    } else {
      by_name.emplace(value.fqn, SavedTensor{value.fqn, *dtype, value.shape});
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot export these values; nothing has been written:");
  std::vector<SavedTensor> tensors;
  std::set<std::pair<std::vector<Hash>, std::vector<std::uint32_t>>> seen;  // most ranks name the same
  for (std::size_t r = 0; r < all.states.size(); ++r) {
    std::vector<Hash> holdings;
    for (const RankState::Holding& holding : all.states[r].holdings) holdings.push_back(holding.values);
    if (!seen.emplace(std::move(holdings), all.orders[r]).second) continue;
    const std::vector<std::string_view> names = names_of(all.states[r], all.known);
    std::vector<std::uint32_t> order = all.orders[r];
    if (order.empty()) {
      order.resize(names.size());
      std::iota(order.begin(), order.end(), 0U);
    }
    for (const std::uint32_t number : order) {
      if (number >= names.size())
        throw Error(ErrorKind::malformed, "a rank has told the order of tensors that it does not have");
      const auto found = by_name.extract(names[number]);
      if (!found.empty()) tensors.push_back(found.mapped());
    }
  }
  for (const SavedValue& value : values.values) {  // what a damaged order left out
    if (const auto found = by_name.extract(value.fqn); !found.empty()) tensors.push_back(found.mapped());
  }
  return tensors;
}

SavedTensor tensor_of(const SavedValue& value) {
  return {value.fqn, *dtype_of_torch(value.properties.dtype), value.shape};
}

/// Leaves out the scales of weights that the files do not have, as of another family (forms_of_rank). Throws
/// Error(malformed) for rows or blocks that a weight does not have.
void keep_columns_of(const Catalog& catalog, std::vector<std::vector<BlockColumn>>& ranks) {
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::erase_if(ranks[rank],
                  [&](const BlockColumn& column) { return catalog.find(column.weight).empty(); });
    for (const BlockColumn& column : ranks[rank]) {
      const Shape& shape = catalog.find(column.weight).front().shape;
      if (shape.size() == 2 && column.first_row <= shape[0] &&
          std::ssize(column.scales) <= shape[0] - column.first_row &&
          column.block <= (shape[1] - 1) / mxfp8_block_columns)
        continue;
      throw Error(ErrorKind::malformed,
                  "rank " + std::to_string(rank) + ": " + column.weight + ": expected scales of blocks of " +
                      to_string(shape) + ", found " + std::to_string(column.scales.size()) + " of block " +
                      std::to_string(column.block) + " from row " + std::to_string(column.first_row) +
                      " on; do all ranks run the same version of shardwright?");
    }
  }
}

/// Bytes of the result that an element of a tensor takes.
double bytes_of_element(const ExportForm& form, const SavedTensor& tensor) {
  const std::vector<Piece> pieces = pieces_of(form.map, tensor.fqn, tensor.shape, form.template_catalog);
  if (pieces.empty()) return 0;
  const Encoding encoding = stored_as(form, pieces.front(), tensor.dtype);
  const double scale = encoding.scaled ? 1.0 / static_cast<double>(encoding.block_columns) : 0;
  return static_cast<double>(bits_of(encoding.element)) / 8 + scale;
}

/// The dimension along which a box of a tensor is best cut: into experts; else along the rows of the HF
/// tensors, which cuts no block and leaves long runs.
std::size_t best_cut(const ExportForm& form, const SavedTensor& tensor, const Box& box) {
  const std::vector<Piece> pieces = pieces_of(form.map, tensor.fqn, tensor.shape, form.template_catalog);
  if (pieces.empty()) return 0;
  const bool into_experts = pieces.front().expert >= 0 && box.size[0] > 1;
  const Correspondence& correspondence = *pieces.front().correspondence;
  const int factor = correspondence.axes.empty() ? -1 : correspondence.axes.front();
  if (into_experts || factor < 0) return 0;
  return static_cast<std::size_t>(correspondence.native_view.dimensions[static_cast<std::size_t>(factor)]);
}

/// The parts of the rank's tensors that it is to write.
std::vector<TensorSpec> owned_parts(const std::vector<TensorSpec>& specs,
                                    const std::vector<WrittenBox>& owned) {
  std::unordered_multimap<std::string_view, const TensorSpec*> by_name;
  for (const TensorSpec& spec : specs) by_name.emplace(spec.fqn, &spec);
  std::vector<TensorSpec> parts;
  for (const WrittenBox& written : owned) {
    const Box& box = written.box;
    if (is_empty(box)) continue;
    const auto [begin, end] = by_name.equal_range(written.fqn);
    const auto spec = std::find_if(begin, end, [&](const auto& entry) { return holds(*entry.second, box); });
    if (spec == end)
      throw Error(ErrorKind::argument,
                  written.fqn + ": this rank has said that it holds " + to_string(box) + ", and does not");
    parts.push_back(part_of(*spec->second, box));
  }
  return parts;
}

ExportLayout layout_of(const ExportRequest& request, std::vector<SourceTensor> tensors,
                       const std::filesystem::path& directory) {
  return lay_out(directory, std::move(tensors), request.max_file_bytes, request.file_numbers,
                 request.start_of_names);
}

/// One file, the widest tensors first, so that each lies at a multiple of its size; then by name.
ExportLayout layout_of_adapter(const AdapterForm& adapter, std::vector<SourceTensor> tensors,
                               const std::filesystem::path& directory) {
  std::sort(tensors.begin(), tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return std::pair(-bytes_of(a.dtype), std::string_view(a.name)) <
           std::pair(-bytes_of(b.dtype), std::string_view(b.name));
  });
  ExportLayout layout = lay_out_one_file(
      directory, std::move(tensors), adapter_weights_name,
      {{writer_key, "save_lora"},
       {config_key, std::to_string(checksum_of(adapter.config.data(), adapter.config.size()))}});
  layout.has_holes = std::any_of(adapter.map.rules.begin(), adapter.map.rules.end(),
                                 [](const Rule& rule) { return rule.rest_is_zero; });
  return layout;
}

/// What all ranks know of an export.
struct Described {
  ExportForm form;
  ExportLayout layout;
  std::vector<std::string> left_out;
  Roundings rounded;
  std::string adapter_config;
};

Described describe(const ExportRequest& request, const std::vector<SavedTensor>& tensors,
                   const std::filesystem::path& directory) {
  Described described;
  AdapterForm adapter;
  if (request.adapter) adapter = adapter_of(request, tensors);
  described.form = request.adapter ? form_of_adapter(adapter) : form_of(request, tensors);
  ExportedTensors exported = exported_tensors(tensors, described.form);
  described.layout = request.adapter ? layout_of_adapter(adapter, std::move(exported.tensors), directory)
                                     : layout_of(request, std::move(exported.tensors), directory);
  const std::vector<SourceTensor>& stored = described.layout.catalog.tensors;
  for (MadeTensor& made : exported.made) {
    const auto tensor =
        static_cast<std::uint32_t>(described.layout.catalog.find(made.name).data() - stored.data());
    described.layout.made.push_back({tensor, std::move(made)});
  }
  described.layout.quantise = described.form.quantise;
  for (const std::string& name : exported.copied)
    described.layout.copied.push_back(
        static_cast<std::uint32_t>(described.layout.catalog.find(name).data() - stored.data()));
  if (described.form.as_template) described.layout.template_catalog = described.form.template_catalog;
  described.layout.packed_template = described.form.packed_template;
  described.left_out = std::move(exported.left_out);
  described.rounded = std::move(exported.rounded);
  described.adapter_config = std::move(adapter.config);
  return described;
}

/// ModelOpt gives weights that take one input, such as those of query, key and value, one global scale: an
/// engine runs them as one matrix, which has one.
void share_by_input(const ExportLayout& layout, std::vector<float>& largest) {
  std::vector<std::string> inputs;
  for (const Made& made : layout.made) {
    if (made.how.kind == MadeTensor::Kind::global_scale) inputs.push_back(shared_input_of(made.how.weight));
  }
  std::unordered_map<std::string_view, float> of_input;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    float& shared = of_input.emplace(inputs[i], largest[i]).first->second;
    shared = std::max(shared, largest[i]);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].empty()) largest[i] = of_input.at(inputs[i]);
  }
}

/// The largest magnitude of each weight with a global scale, in the order of what the layout makes. Throws
/// Error(mismatch) for a weight of which nobody has told it.
std::vector<float> largest_of_weights(const ExportLayout& layout,
                                      const std::vector<std::vector<WeightNumbers>>& ranks) {
  std::unordered_map<std::string_view, float> told;
  for (const std::vector<WeightNumbers>& of_rank : ranks) {
    for (const WeightNumbers& numbers : of_rank) told.emplace(numbers.weight, numbers.largest);
  }
  std::vector<float> largest;
  Problems problems;
  for (const Made& made : layout.made) {
    if (made.how.kind != MadeTensor::Kind::global_scale) continue;
    const auto found = told.find(made.how.weight);
    largest.push_back(found == told.end() ? 0 : found->second);
    if (found == told.end() && volume(layout.catalog.find(made.how.weight).front().shape) > 0) {
      problems.add(made.how.weight +
                   ": its global scale is that of all its values, which nobody has looked at; save with "
                   "shardwright.SavePlanner, which sees to it");
    } else if (!std::isfinite(largest.back())) {
      problems.add(made.how.weight + ": expected finite values, since four bits have nothing to stand for " +
                   (std::isnan(largest.back()) ? "a NaN" : "an infinity") + ", found one");
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot quantise these weights; nothing has been written:");
  if (layout.quantise != nullptr && layout.quantise->rule == EncodingRule::nvfp4_modelopt)
    share_by_input(layout, largest);
  return largest;
}

/// The inverse, on each rank.
void add_largest(const ExportLayout& layout, const std::vector<float>& largest, KnownNumbers& known) {
  std::size_t n = 0;
  for (const Made& made : layout.made) {
    if (made.how.kind != MadeTensor::Kind::global_scale) continue;
    if (n < largest.size()) known.add_largest(made.how.weight, largest[n]);
    ++n;
  }
  if (n != largest.size())
    throw Error(ErrorKind::malformed, "rank 0 has told the largest magnitudes of " +
                                          std::to_string(largest.size()) + " weights; expected " +
                                          std::to_string(n) +
                                          "; do all ranks run the same version of shardwright?");
}

/// The forms that an export may have, as far as a rank's own tensors tell. Without a template it may take
/// those of all ranks to tell the family, which plan_export() has: then it may be any that has names for
/// these.
std::vector<ExportForm> forms_of_rank(const ExportRequest& request, const std::vector<SavedTensor>& tensors) {
  try {
    return {form_of(request, tensors)};
  } catch (const Error& error) {
    if (error.kind != ErrorKind::mismatch || request.template_catalog != nullptr || request.model != "auto")
      throw;
  }
  std::vector<ExportForm> forms;
  for (const Model& model : models()) {
    ExportRequest of_family = request;
    of_family.model = model.family;
    try {
      forms.push_back(form_of(of_family, tensors));
      for (const SavedTensor& tensor : tensors) pieces_of(forms.back().map, tensor.fqn, tensor.shape);
    } catch (const Error&) {
      if (!forms.empty() && forms.back().map.family == model.family) forms.pop_back();
    }
  }
  return forms;
}

/// Rows of a matrix that are never parted: as many as the largest block has.
constexpr std::int64_t rows_together = 128;

/// A part of a spec without memory.
TensorSpec part_elsewhere(const TensorSpec& spec, const Box& box) {
  TensorSpec part = whole_tensor(spec.fqn, spec.dtype, box.size);
  part.global_shape = spec.global_shape;
  part.boxes = {{box, Shape(box.size.size(), 0)}};
  return part;
}

/// Cuts a spec of one box along rows, or further out, into parts of so many bytes.
void cut_into_parts(const TensorSpec& spec, std::size_t bytes, std::vector<TensorSpec>& parts) {
  const Box& box = spec.boxes.front().global;
  const std::int64_t all = volume(box.size) * bytes_of(spec.dtype);
  std::size_t d = 0;
  while (d + 2 < box.size.size() && box.size[d] == 1) ++d;
  const std::int64_t grid = d + 2 == box.size.size() ? rows_together : 1;
  if (all <= static_cast<std::int64_t>(bytes) || box.size.empty() || box.size[d] <= grid) {
    parts.push_back(spec);
    return;
  }
  std::int64_t strip = static_cast<std::int64_t>(bytes) / std::max<std::int64_t>(1, all / box.size[d]);
  strip = std::max(grid, strip - strip % grid);
  for (std::int64_t done = 0; done < box.size[d]; done += strip) {
    Box part = box;
    part.offset[d] += done;
    part.size[d] = std::min(strip, box.size[d] - done);
    cut_into_parts(part_elsewhere(spec, part), bytes, parts);
  }
}

/// Fills the parts of specs without memory, as many at a time as there is room for, and calls use with them.
void for_each_batch(const std::vector<TensorSpec>& specs, const ValuesElsewhere& values,
                    const std::function<void(const std::vector<TensorSpec>&)>& use) {
  std::vector<TensorSpec> parts;
  for (const TensorSpec& spec : specs) {
    for (const LocalBox& box : spec.boxes)
      cut_into_parts(part_elsewhere(spec, box.global), values.bytes_at_once, parts);
  }
  constexpr std::size_t alignment = 64;
  const auto room_for = [&](const TensorSpec& spec) {
    const auto bytes = static_cast<std::size_t>(volume(spec.local_shape) * bytes_of(spec.dtype));
    return (bytes + alignment - 1) / alignment * alignment;
  };
  std::vector<std::byte> memory;
  for (std::size_t first = 0; first < parts.size();) {
    std::size_t end = first;
    std::size_t bytes = 0;
    while (end < parts.size() && (end == first || bytes + room_for(parts[end]) <= values.bytes_at_once))
      bytes += room_for(parts[end++]);
    if (memory.size() < bytes) {
      std::vector<std::byte>().swap(memory);  // before there is the other one
      memory.resize(bytes);
    }
    std::vector<TensorSpec> batch(parts.begin() + static_cast<std::ptrdiff_t>(first),
                                  parts.begin() + static_cast<std::ptrdiff_t>(end));
    std::byte* next = memory.data();
    for (TensorSpec& part : batch) {
      part.data = next;
      next += room_for(part);
    }
    values.fill(batch);
    use(batch);
    first = end;
  }
}

/// Adds what writing a batch came to.
void add(const ExportReport& of_batch, ExportReport& report) {
  report.row_sums += of_batch.row_sums;  // a message of repeated fields, behind one another
  report.tensors += of_batch.tensors;
  report.bytes_needed += of_batch.bytes_needed;
  report.bytes_written += of_batch.bytes_written;
  report.write_requests += of_batch.write_requests;
  report.files = std::max(report.files, of_batch.files);
  report.threads = std::max(report.threads, of_batch.threads);
  report.peak_staging_bytes = std::max(report.peak_staging_bytes, of_batch.peak_staging_bytes);
  report.encode_seconds += of_batch.encode_seconds;
  report.write_seconds += of_batch.write_seconds;
  report.sync_seconds += of_batch.sync_seconds;
}

}  // namespace

void ExportRequest::set_quantization(std::string_view name, std::vector<std::string> weights) {
  as_template = name == "template";
  quantise = quantization_named(name);
  if (quantise == nullptr && !as_template && name != "none") {
    throw Error(ErrorKind::argument, "quantization is \"" + std::string(name) + "\"; expected one of " +
                                         names_of_quantizations() + ", template, or none");
  }
  if (quantise == nullptr && !weights.empty())
    throw Error(ErrorKind::argument, "quantized_weights: expected a quantization= by which to encode them");
  quantised_weights = std::move(weights);
}

std::string describe_export(const std::vector<TensorSpec>& specs, const RankState& state,
                            const ExportRequest& request, const ValuesElsewhere& values) {
  ExportHoldings holdings{told_state(state), order_of(specs, state), {}, words_of(request)};
  // Nothing is cut, so that only what all values have a say in has to be told.
  if (request.quantise != nullptr && request.quantise->has_global()) {
    const std::vector<ExportForm> forms = forms_of_rank(request, tensors_of(specs));
    KnownNumbers known;
    for_each_batch(specs, values, [&](const std::vector<TensorSpec>& batch) {
      for (const ExportForm& form : forms) {
        for (const WeightNumbers& numbers : find_numbers(batch, form, {}))
          known.add_largest(numbers.weight, numbers.largest);
      }
    });
    holdings.numbers = known.all();
  }
  return encode_holdings(holdings);
}

std::string describe_export(const std::vector<TensorSpec>& specs, const RankState& state,
                            const ExportRequest& request, const DeviceOptions& devices) {
  Problems problems;
  const bool reaches_devices = calls_of(devices) != nullptr;
  for (const TensorSpec& spec : specs) {
    std::string fault = fault_of(spec, true);
    if (fault.empty() && spec.device != DeviceKind::cpu && !reaches_devices) {
      fault = "expected CPU memory, found it on " + spec.device_name;
    }
    if (!fault.empty()) problems.add(spec.fqn + ": " + fault);
  }
  problems.throw_if_any(ErrorKind::mismatch, "cannot export these tensors; nothing has been written:");
  ExportHoldings holdings{told_state(state), order_of(specs, state), {}, words_of(request)};
  const bool has_memory = std::none_of(specs.begin(), specs.end(), [](const TensorSpec& spec) {
    return spec.data == nullptr && volume(spec.local_shape) > 0;
  });
  if (request.quantise != nullptr && has_memory) {
    for (const ExportForm& form : forms_of_rank(request, tensors_of(specs))) {
      std::vector<BlockColumn> columns = scales_of_cut_blocks(specs, form, devices);
      std::move(columns.begin(), columns.end(), std::back_inserter(holdings.columns));
      std::vector<WeightNumbers> numbers = find_numbers(specs, form, devices);
      std::move(numbers.begin(), numbers.end(), std::back_inserter(holdings.numbers));
    }
  }
  return encode_holdings(holdings);
}

PlannedExport plan_export(const std::vector<std::string>& holdings, const ExportRequest& request,
                          const std::filesystem::path& directory) {
  AllHoldings all = all_holdings(holdings);
  expect_asked_alike(all.asked);
  PlannedExport planned;
  if (const auto lost = with_lost_values(all.states, all.known); !lost.empty()) {
    planned.is_refused = true;
    for (std::string& refusal : refusals(all.states, lost, all.known))
      planned.shares.push_back(encode_share({std::move(refusal), {}, {}, {}, {}, {}, {}}));
    return planned;
  }
  std::vector<SavedTensor> tensors;
  Described described;
  const GlobalSavePlan plan = plan_save(all.states, all.known, [&](const SavedValues& values) {
    tensors = tensors_of(all, values);
    if (tensors.empty() && !request.adapter)
      throw Error(ErrorKind::mismatch, "cannot export a state dict without tensors");
    described = describe(request, tensors, directory);
    const ExportForm& form = described.form;
    return Dealing{
        [&](const SavedValue& value) { return bytes_of_element(form, tensor_of(value)); },
        [&](const SavedValue& value, const Box& box) { return best_cut(form, tensor_of(value), box); }};
  });
  planned.layout = std::move(described.layout);
  planned.left_out = std::move(described.left_out);
  planned.adapter_config = std::move(described.adapter_config);
  keep_columns_of(planned.layout.catalog, all.columns);
  share_scales(all.columns);
  share_numbers(planned.layout.catalog, all.numbers);
  const std::vector<float> largest = largest_of_weights(planned.layout, all.numbers);
  const std::string told = encode_tensors(tensors);
  const std::size_t ranks = all.states.size();
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    ExportShare share{{},
                      told,
                      encode(RankWrites{plan.left_to_others[rank], plan.cuts[rank]}),
                      std::move(all.columns[rank]),
                      {},
                      std::move(all.numbers[rank]),
                      largest};
    for (std::size_t file = rank; file < planned.layout.headers.size(); file += ranks)
      share.headers.push_back(static_cast<std::uint32_t>(file));
    planned.shares.push_back(encode_share(share));
  }
  return planned;
}

std::string checksums_of_export(const ExportLayout& layout, const std::vector<std::string>& row_sums,
                                const std::filesystem::path& directory,
                                const std::vector<std::string>& beside) {
  Checksums checksums;
  for (std::size_t f = 0; f < layout.headers.size(); ++f) {
    const std::string& header = layout.headers[f];
    checksums.files.push_back({layout.catalog.files[f].name, layout.catalog.files[f].size, header.size(),
                               checksum_of(header.data(), header.size())});
  }
  for (const std::string& name : beside) checksums.beside.push_back(whole_file(directory, name));
  std::vector<RowChecksums> merged = merged_row_sums(row_sums, layout.catalog.tensors);
  for (std::size_t t = 0; t < merged.size(); ++t)
    checksums.tensors.emplace(stored_name(layout.catalog.tensors[t]), std::move(merged[t]));
  return encode_checksums(checksums);
}

ExportReport run_export(const std::string& bytes, const std::vector<TensorSpec>& specs,
                        const RankState& state, const ExportRequest& request,
                        const std::filesystem::path& directory, const ExportWriting& options,
                        const ValuesElsewhere* values) {
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  ExportShare share = decode_share(bytes);
  if (!share.refusal.empty()) throw_refusal(share.refusal, state);
  Described described = describe(request, decode_tensors(share.tensors), directory);
  const ExportLayout& layout = described.layout;
  for (const std::uint32_t file : share.headers) {
    if (file >= layout.headers.size())
      throw Error(ErrorKind::malformed, "this rank is to write the header of file " + std::to_string(file) +
                                            " of " + std::to_string(layout.headers.size()) +
                                            "; do all ranks run the same version of shardwright?");
  }
  const std::vector<WrittenBox> owned = boxes_to_write(state, read_writes(share.writes, state));
  PartsToWrite parts{owned_parts(specs, owned), std::move(share.columns), std::move(share.headers), {}};
  for (const WeightNumbers& numbers : share.numbers) parts.numbers.add(numbers);
  add_largest(layout, share.largest, parts.numbers);
  LoadPlanOptions reversed;
  reversed.exporting = true;
  reversed.strict = false;
  ExportReport report;
  report.rounded = std::move(described.rounded);
  for (std::uint32_t file : parts.headers) report.bytes_needed += layout.headers[file].size();
  if (values == nullptr) {
    complete_numbers(specs, parts.specs, described.form, options.devices, parts.numbers);
    const LoadPlan plan = plan_load(parts.specs, layout.catalog, described.form.map, reversed);
    expect_memory(plan, parts.specs);
    report.tensors = plan.tensors;
    report.bytes_needed += plan.bytes_needed;
    report.plan_seconds = seconds();
    write_parts(parts, layout, plan, directory, options, report);
    report.total_seconds = seconds();
    return report;
  }
  const std::vector<TensorSpec> all = std::move(parts.specs);
  const auto write_batch = [&](const std::vector<TensorSpec>& batch) {
    parts.specs = batch;
    const LoadPlan plan = plan_load(batch, layout.catalog, described.form.map, reversed);
    ExportReport of_batch;
    write_parts(parts, layout, plan, directory, options, of_batch);
    parts.headers.clear();  // they are written now
    of_batch.tensors = plan.tensors;
    of_batch.bytes_needed = plan.bytes_needed;
    for (const TensorSpec& spec : batch)
      of_batch.peak_staging_bytes +=
          static_cast<std::size_t>(volume(spec.local_shape) * bytes_of(spec.dtype));
    add(of_batch, report);
  };
  if (all.empty()) write_batch({});
  for_each_batch(all, *values, write_batch);
  report.total_seconds = seconds();
  return report;
}

}  // namespace shardwright
