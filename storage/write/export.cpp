#include "storage/write/export.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/load/load_plan.h"
#include "planner/models/models.h"
#include "planner/problems.h"
#include "planner/save/export_form.h"
#include "planner/save/export_wire.h"
#include "planner/save/ownership.h"
#include "storage/boxes/placing.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/row_checksums.h"
#include "storage/lora/adapter_file.h"
#include "storage/write/cut_block_scales.h"
#include "storage/write/export_writer.h"

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
  form.pattern = request.pattern;
  form.quantise = request.quantise;
  form.strict = request.strict;
  form.strict_dtypes = request.strict_dtypes;
  form.by_rule_of_names = request.pattern == nullptr || !has_scales(*request.pattern);
  if (request.map != nullptr) {
    form.map = *request.map;
  } else if (request.pattern != nullptr) {
    form.map = weight_map_for(*request.pattern, request.model, request.layout);
  } else {
    form.map = weight_map_without_template(tensors, request.model, request.layout, request.quantise);
  }
  return form;
}

std::vector<SavedTensor> tensors_of(const Holdings& holdings) {
  std::vector<SavedTensor> tensors;
  for (const HeldBoxes& held : holdings) tensors.push_back(held.tensor);
  return tensors;
}

/// Bytes of the result that an element of a tensor takes, and how boxes of it are best cut.
class Costs {
 public:
  explicit Costs(const ExportForm& form) : form_(form) {}

  double bytes_of_element(const SavedTensor& tensor) const {
    const std::vector<Piece> pieces = pieces_of(form_.map, tensor.fqn, tensor.shape, form_.pattern);
    if (pieces.empty()) return 0;
    const Encoding encoding = stored_as(form_, pieces.front(), tensor.dtype);
    const double scale = encoding.scaled ? 1.0 / static_cast<double>(encoding.block_columns) : 0;
    return bytes_of(encoding.element) + scale;
  }

  /// Into experts; else along the rows of the HF tensors, which cuts no block and leaves long runs.
  std::size_t cut(const SavedTensor& tensor, const Box& box) const {
    const std::vector<Piece> pieces = pieces_of(form_.map, tensor.fqn, tensor.shape, form_.pattern);
    if (pieces.empty()) return 0;
    const bool into_experts = pieces.front().expert >= 0 && box.size[0] > 1;
    const Correspondence& correspondence = *pieces.front().correspondence;
    const int factor = correspondence.axes.empty() ? -1 : correspondence.axes.front();
    if (into_experts || factor < 0) return 0;
    return static_cast<std::size_t>(correspondence.native_view.dimensions[static_cast<std::size_t>(factor)]);
  }

 private:
  const ExportForm& form_;
};

/// The parts of the rank's tensors that it is to write.
std::vector<TensorSpec> owned_parts(const std::vector<TensorSpec>& specs, const Holdings& owned) {
  std::unordered_multimap<std::string_view, const TensorSpec*> by_name;
  for (const TensorSpec& spec : specs) by_name.emplace(spec.fqn, &spec);
  std::vector<TensorSpec> parts;
  for (const HeldBoxes& held : owned) {
    const auto [begin, end] = by_name.equal_range(held.tensor.fqn);
    for (const Box& box : held.boxes) {
      for (auto spec = begin; spec != end; ++spec) {
        if (!holds(*spec->second, box)) continue;
        parts.push_back(part_of(*spec->second, box));
        break;
      }
    }
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
  described.left_out = std::move(exported.left_out);
  described.rounded = std::move(exported.rounded);
  described.adapter_config = std::move(adapter.config);
  return described;
}

/// The forms that an export may have, as far as a rank's own tensors tell. Without a template it may take
/// those of all ranks to tell the family, which plan_export() has: then it may be any that has names for
/// these.
std::vector<ExportForm> forms_of_rank(const ExportRequest& request, const std::vector<SavedTensor>& tensors) {
  try {
    return {form_of(request, tensors)};
  } catch (const Error& error) {
    if (error.kind != ErrorKind::mismatch || request.pattern != nullptr || request.model != "auto") throw;
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

}  // namespace

std::string describe_export(const std::vector<TensorSpec>& specs, const ExportRequest& request,
                            const DeviceOptions& devices) {
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
  ExportHoldings holdings{holdings_of(specs), {}};
  if (request.quantise) {
    for (const ExportForm& form : forms_of_rank(request, tensors_of(holdings.held))) {
      std::vector<BlockColumn> columns = scales_of_cut_blocks(specs, form, devices);
      std::move(columns.begin(), columns.end(), std::back_inserter(holdings.columns));
    }
  }
  return encode_holdings(holdings);
}

PlannedExport plan_export(const std::vector<std::string>& holdings, const ExportRequest& request,
                          const std::filesystem::path& directory) {
  std::vector<Holdings> held;
  std::vector<std::vector<BlockColumn>> columns;
  for (const std::string& bytes : holdings) {
    ExportHoldings of_rank = decode_holdings(bytes);
    held.push_back(std::move(of_rank.held));
    columns.push_back(std::move(of_rank.columns));
  }
  const std::vector<SavedTensor> tensors = all_tensors(held);
  if (tensors.empty() && !request.adapter)
    throw Error(ErrorKind::mismatch, "cannot export a state dict without tensors");
  Described described = describe(request, tensors, directory);
  PlannedExport planned{
      std::move(described.layout), {}, std::move(described.left_out), std::move(described.adapter_config)};

  const Costs costs(described.form);
  std::vector<Holdings> owned = deal_out(
      held, [&](const SavedTensor& tensor) { return costs.bytes_of_element(tensor); },
      [&](const SavedTensor& tensor, const Box& box) { return costs.cut(tensor, box); });
  share_scales(columns);
  for (std::size_t rank = 0; rank < owned.size(); ++rank) {
    ExportShare share{tensors, std::move(owned[rank]), std::move(columns[rank]), {}};
    for (std::size_t file = rank; file < planned.layout.headers.size(); file += owned.size())
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
    checksums.tensors.emplace(layout.catalog.tensors[t].name, std::move(merged[t]));
  return encode_checksums(checksums);
}

ExportReport run_export(const std::string& bytes, const std::vector<TensorSpec>& specs,
                        const ExportRequest& request, const std::filesystem::path& directory,
                        const ExportWriting& options) {
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  ExportShare share = decode_share(bytes);
  Described described = describe(request, share.tensors, directory);
  const ExportLayout& layout = described.layout;
  PartsToWrite parts{owned_parts(specs, share.owned), std::move(share.columns), std::move(share.headers)};
  LoadPlanOptions reversed;
  reversed.exporting = true;
  reversed.strict = false;
  const LoadPlan plan = plan_load(parts.specs, layout.catalog, described.form.map, reversed);
  expect_memory(plan, parts.specs);

  ExportReport report;
  report.rounded = std::move(described.rounded);
  report.tensors = plan.tensors;
  report.bytes_needed = plan.bytes_needed;
  for (std::uint32_t file : parts.headers) report.bytes_needed += layout.headers.at(file).size();
  report.plan_seconds = seconds();
  write_parts(parts, layout, plan, directory, options, report);
  report.total_seconds = seconds();
  return report;
}

}  // namespace shardwright
