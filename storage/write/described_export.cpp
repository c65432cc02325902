#include "storage/write/described_export.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "planner/models/known_models.h"
#include "planner/names/rule_pieces.h"
#include "storage/format/adapter_file.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checksum.h"

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
  form.quantize = request.quantize;
  form.weights = request.quantized_weights;
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
                                           request.quantize != nullptr && request.quantized_weights.empty());
  }
  keep_packed(form, tensors);
  return form;
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

}  // namespace

DescribedExport described_export(const ExportRequest& request, const std::vector<SavedTensor>& tensors,
                                 const std::filesystem::path& directory) {
  DescribedExport described;
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
  described.layout.quantize = described.form.quantize;
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

}  // namespace shardwright
