#include "storage/write/export.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/shared_inputs.h"
#include "planner/names/torch_dtypes.h"
#include "planner/problems.h"
#include "planner/save/export_form.h"
#include "planner/save/export_wire.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/row_checksums.h"
#include "storage/seconds.h"
#include "storage/write/cut_block_scales.h"
#include "storage/write/described_export.h"
#include "storage/write/export_share.h"
#include "storage/write/export_words.h"
#include "storage/write/export_writer.h"
#include "storage/write/find_numbers.h"
#include "storage/write/values_elsewhere.h"

namespace shardwright {
namespace {

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
  problems.throw_if_any(ErrorKind::mismatch, "cannot quantize these weights; nothing has been written:");
  if (layout.quantize != nullptr && layout.quantize->rule == EncodingRule::nvfp4_modelopt)
    share_by_input(layout, largest);
  return largest;
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
  quantize = quantization_named(name);
  if (quantize == nullptr && !as_template && name != "none") {
    throw Error(ErrorKind::argument, "quantization is \"" + std::string(name) + "\"; expected one of " +
                                         names_of_quantizations() + ", template, or none");
  }
  if (quantize == nullptr && !weights.empty())
    throw Error(ErrorKind::argument, "quantized_weights: expected a quantization= by which to encode them");
  quantized_weights = std::move(weights);
}

std::string describe_export(const std::vector<TensorSpec>& specs, const RankState& state,
                            const ExportRequest& request, const ValuesElsewhere& values) {
  ExportHoldings holdings{told_state(state), order_of(specs, state), {}, words_of(request)};
  // Nothing is cut, so that only what all values have a say in has to be told.
  if (request.quantize != nullptr && request.quantize->has_global()) {
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
  if (request.quantize != nullptr && has_memory) {
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
  DescribedExport described;
  const GlobalSavePlan plan = plan_save(all.states, all.known, [&](const SavedValues& values) {
    tensors = tensors_of(all, values);
    if (tensors.empty() && !request.adapter)
      throw Error(ErrorKind::mismatch, "cannot export a state dict without tensors");
    described = described_export(request, tensors, directory);
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
  const Clock::time_point begin = Clock::now();
  SharedExport share = shared_export(bytes, specs, state, request, directory);
  PartsToWrite& parts = share.parts;
  const ExportLayout& layout = share.described.layout;
  ExportReport report;
  report.rounded = std::move(share.described.rounded);
  for (std::uint32_t file : parts.headers) report.bytes_needed += layout.headers[file].size();
  if (values == nullptr) {
    const LoadPlan plan = plan_with_memory(share, specs, options.devices);
    report.tensors = plan.tensors;
    report.bytes_needed += plan.bytes_needed;
    report.plan_seconds = seconds_since(begin);
    write_parts(parts, layout, plan, directory, options, report);
    report.total_seconds = seconds_since(begin);
    return report;
  }
  const std::vector<TensorSpec> all = std::move(parts.specs);
  const auto write_batch = [&](const std::vector<TensorSpec>& batch) {
    parts.specs = batch;
    const LoadPlan plan = plan_of_parts(batch, share.described);
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
  report.total_seconds = seconds_since(begin);
  return report;
}

}  // namespace shardwright