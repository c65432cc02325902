#include "storage/jobs/load_checkpoint.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "planner/load/load_plan.h"
#include "planner/load/rounding.h"
#include "planner/models/models.h"
#include "planner/names/held_tensors.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/packed_weights.h"
#include "planner/wire/packed_texts.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/content_words.h"
#include "storage/format/manifest.h"
#include "storage/format/read_catalog.h"
#include "storage/tools/undamaged.h"

namespace shardwright {
namespace {

/// What one rank is to read, and what of it is worth telling.
struct PlannedLoad {
  Catalog catalog;
  LoadPlan plan;
  Roundings rounded;
};

/// Plans on every rank, of one checkpoint, before any of them writes.
LoadReport run_on_all_ranks(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                            const Job& job, const CheckpointLoadOptions& options,
                            const std::function<void(PlannedLoad&)>& plan) {
  PlannedLoad planned;
  const auto planning = [&] {
    expect_location(directory);
    plan(planned);
    planned.rounded = roundings_of(planned.plan, specs, planned.catalog);
    if (options.strict_dtypes)
      refuse(planned.rounded, printable(directory.native()) + ": strict_dtypes, and these would be rounded:");
    if (job.ranks == 1) return std::string();
    return pack_texts(content_words(planned.catalog, options.reading.threads));
  };
  round_of(job, planning, [&](const std::vector<std::string>& told) {
    std::vector<std::vector<std::string>> words;
    for (const std::string& of_rank : told) words.push_back(unpack_texts(of_rank));
    expect_one_checkpoint(words);
    return std::vector<std::string>(told.size());
  });
  LoadReport report;
  on_all_ranks(job, [&] { report = load(planned.plan, planned.catalog, specs, options.reading); });
  report.rounded = std::move(planned.rounded);
  return report;
}

/// Compares the files that the plan reads with what the manifest tells of them.
void expect_files_of(const LoadPlan& plan, const Catalog& catalog, const Manifest& manifest,
                     const std::filesystem::path& directory, int threads) {
  std::set<std::uint32_t> files;  // which the catalog numbers as the manifest does
  for (const Transfer& transfer : plan.transfers) {
    files.insert(catalog.tensors[transfer.source].file);
    if (transfer.scales >= 0) files.insert(catalog.tensors[static_cast<std::size_t>(transfer.scales)].file);
  }
  expect_told_alike(manifest, directory, files, threads);
}

}  // namespace

LoadReport load_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                           const Job& job, const CheckpointLoadOptions& options) {
  return run_on_all_ranks(specs, directory, job, options, [&](PlannedLoad& planned) {
    planned.catalog = read_catalog(directory, options.reading.threads);
    WeightMap map = weight_map_for(planned.catalog, options.model, options.layout);
    LoadPlanOptions how;
    if (options.packed) {
      HeldDtypes held;
      for (const TensorSpec& spec : specs) held.emplace(spec.fqn, spec.dtype);
      Packed packed = as_packed(planned.catalog, map, held);
      planned.catalog = std::move(packed.catalog);
      map = std::move(packed.map);
      how.problems = std::move(packed.problems);
    }
    how.strict = options.strict;
    how.allow_missing = options.allow_missing;
    planned.plan = plan_load(specs, planned.catalog, map, how);
  });
}

LoadReport resume_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                             const Job& job, const CheckpointLoadOptions& options) {
  std::vector<std::string> objects;
  LoadReport report = run_on_all_ranks(specs, directory, job, options, [&](PlannedLoad& planned) {
    Manifest manifest;
    const bool is_listed = has_manifest(directory);
    if (is_listed) manifest = read_manifest(directory);
    planned.catalog = is_listed ? catalog_of(manifest, directory)
                                : as_stored(read_catalog(directory, options.reading.threads));
    LoadPlanOptions how;
    how.strict = false;
    how.allow_missing = options.allow_missing;
    how.resuming = true;
    planned.plan = plan_load(specs, planned.catalog, unchanged_names(), how);
    if (is_listed)
      expect_files_of(planned.plan, planned.catalog, manifest, directory, options.reading.threads);
    for (const StoredObject& object : manifest.objects) objects.push_back(object.name);
  });
  for (std::vector<std::string>* more : {&report.unknown, &objects})  // no rules here that could know a name
    report.unused.insert(report.unused.end(), more->begin(), more->end());
  report.unknown.clear();
  std::sort(report.unused.begin(), report.unused.end());
  return report;
}

}  // namespace shardwright
