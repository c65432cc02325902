#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "planner/load/rounding.h"
#include "planner/save/export_form.h"
#include "storage/write/export.h"
#include "storage/write/export_layout.h"

namespace shardwright {

/// What all ranks know of an export, by its request and the tensors of all of them.
struct DescribedExport {
  ExportForm form;
  ExportLayout layout;
  std::vector<std::string> left_out;
  Roundings rounded;
  std::string adapter_config;
};

/// Throws as exported_tensors() and lay_out().
DescribedExport described_export(const ExportRequest& request, const std::vector<SavedTensor>& tensors,
                                 const std::filesystem::path& directory);

/// The forms that an export may have, as far as a rank's own tensors tell. Without a template it may take
/// those of all ranks to tell the family, which plan_export() has: then it may be any that has names for
/// these.
std::vector<ExportForm> forms_of_rank(const ExportRequest& request, const std::vector<SavedTensor>& tensors);

}  // namespace shardwright
