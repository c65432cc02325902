#include "storage/jobs/conversion.h"

#include <algorithm>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/load/load_plan.h"
#include "planner/models/models.h"
#include "planner/names/companions.h"
#include "planner/names/held_tensors.h"
#include "planner/names/packed_weights.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/weight_map.h"
#include "storage/files/printable.h"
#include "storage/format/manifest.h"
#include "storage/format/read_catalog.h"
#include "storage/jobs/publication.h"
#include "storage/load/load.h"
#include "storage/tools/undamaged.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t default_buffer_bytes = std::size_t{128} << 20;

/// Rows of a matrix that one rank has all of: the largest block.
constexpr std::int64_t rows_together = 128;

/// Fewer bytes are not worth dividing.
constexpr std::int64_t smallest_part = std::int64_t{1} << 20;

/// Which indices of a tensor's first dimension this rank converts; whole, if they are few, or a matrix that
/// is not to be cut, those that come round to it.
Box part_of_rank(const NativeTensor& tensor, std::size_t number, bool has_whole_matrices, int rank,
                 int ranks) {
  Box box = whole(tensor.shape);
  const std::int64_t bytes = volume(tensor.shape) * bytes_of(tensor.dtype);
  if (ranks == 1) return box;
  const bool is_whole = tensor.shape.size() == 2 && has_whole_matrices;
  if (tensor.shape.empty() || bytes < smallest_part || is_whole) {
    const bool is_mine = number % static_cast<std::size_t>(ranks) == static_cast<std::size_t>(rank);
    if (!is_mine && !box.size.empty()) box.size[0] = 0;
    return box;  // a single number is told by each rank, and written by one
  }
  const std::int64_t grid = tensor.shape.size() == 2 ? rows_together : 1;
  const std::int64_t units = (tensor.shape[0] + grid - 1) / grid;
  const auto begin_of = [&](std::int64_t of) { return std::min(tensor.shape[0], units * of / ranks * grid); };
  box.offset[0] = begin_of(rank);
  box.size[0] = begin_of(rank + 1) - box.offset[0];
  return box;
}

}  // namespace

Catalog catalog_of_training(const fs::path& source, const std::vector<SavedWeight>& weights, int threads) {
  if (!has_manifest(source)) return as_stored(read_catalog(source, threads));
  const Manifest manifest = read_manifest(source);
  Catalog catalog = catalog_of(manifest, source);
  std::set<std::uint32_t> files;  // which the catalog numbers as the manifest does
  for (const SavedWeight& weight : weights) {
    for (const SourceTensor& chunk : catalog.find(weight.stored)) files.insert(chunk.file);
  }
  expect_told_alike(manifest, source, files, threads);
  return catalog;
}

Conversion::Conversion(const fs::path& source, const ConvertOptions& options, int rank, int ranks)
    : catalog_(read_catalog(source, options.threads)),
      map_(weight_map_for(catalog_, options.model, "huggingface")),
      options_(options) {
  ask_for(options);
  request_.template_catalog = &template_;
  request_.map = &map_;
  request_.layout = "huggingface";
  template_ = catalog_;
  load_map_ = map_;
  transpose_blocks();
  for (const NativeTensor& tensor : native_tensors(template_, map_)) add_spec(tensor, rank, ranks);
  state_ = state_of(specs_, rank);
}

Conversion::Conversion(Catalog source, const std::vector<SavedWeight>& weights, const ConvertOptions& options,
                       int rank, int ranks, const Catalog* template_catalog, const WeightMap* map)
    : catalog_(std::move(source)), load_map_(unchanged_names()), options_(options) {
  request_.template_catalog = template_catalog;
  request_.map = map;
  ask_for(options);
  request_.layout = options.layout;
  for (const SavedWeight& weight : weights) {
    const auto chunks = catalog_.find(weight.stored);
    if (chunks.empty())
      throw Error(ErrorKind::mismatch, weight.stored + ": expected a tensor of safetensors' dtypes in " +
                                           printable(catalog_.directory.native()) +
                                           ", found none; leave it out of the weights");
    const NativeTensor tensor{weight.fqn, chunks.front().dtype, Catalog::global_shape(chunks), false};
    stored_.emplace(weight.fqn, weight.stored);
    add_spec(tensor, rank, ranks);
    const std::size_t rank_of_tensor = tensor.shape.size();
    if (rank_of_tensor < 2) continue;
    const std::int64_t elements = tensor.shape[rank_of_tensor - 2] * tensor.shape[rank_of_tensor - 1];
    largest_matrix_ =
        std::max(largest_matrix_, static_cast<std::size_t>(elements * bytes_of(tensor.dtype)) + 64);
  }
  state_ = state_of(specs_, rank);
}

void Conversion::ask_for(const ConvertOptions& options) {
  if (options.quantization == "template" && request_.template_catalog == nullptr)
    throw Error(ErrorKind::argument,
                "quantization is \"template\", which leaves all as it is; expected one of " +
                    names_of_quantizations() + ", or none");
  request_.model = options.model;
  request_.max_file_bytes = options.max_file_bytes;
  request_.set_quantization(options.quantization, options.quantized_weights);
}

void Conversion::add_spec(const NativeTensor& tensor, int rank, int ranks) {
  const Box box = part_of_rank(tensor, specs_.size(), !stored_.empty(), rank, ranks);
  TensorSpec spec = whole_tensor(tensor.fqn, tensor.dtype, box.size);
  spec.global_shape = tensor.shape;
  spec.boxes = {{box, Shape(box.size.size(), 0)}};
  specs_.push_back(std::move(spec));
}

/// gpt-oss's blocks of a stack hold the transposes of the matrices that go under the name otherwise: gives
/// the template what is written in place of what is read, and the rules of loading the way between the two.
void Conversion::transpose_blocks() {
  const Quantization* const how = request_.quantize;
  const bool to_blocks = how != nullptr && how->rule == EncodingRule::mxfp4_gpt_oss;
  const auto is_named = [&](const SourceTensor& tensor) {
    const std::vector<std::string>& patterns = request_.quantized_weights;
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const std::string& pattern) { return fits_pattern(tensor.name, pattern); });
  };
  std::vector<SourceTensor> scales;
  std::vector<std::string> without_scales;
  for (SourceTensor& tensor : template_.tensors) {
    const bool from_blocks = has_blocks(tensor);
    const bool is_stack = tensor.shape.size() > 2 && !tensor.name.ends_with(".weight");
    const bool begins_blocks = to_blocks && !from_blocks && is_stack && is_named(tensor);
    const bool ends_blocks = from_blocks && how == nullptr;
    if (!begins_blocks && !ends_blocks) continue;
    if (is_stack) std::swap(tensor.shape[tensor.shape.size() - 2], tensor.shape.back());
    tensor.stored = nullptr;
    if (begins_blocks) {
      if (const auto old = scales_of(catalog_, tensor.name); !old.empty())
        without_scales.push_back(old.front().name);  // of another encoding, which is decoded
      tensor.dtype = DType::F4;
      if (fault_of_quantizing(*how, tensor.name, tensor.shape).empty()) store_as(*how, tensor);
      scales.push_back(scales_by(*how, encoding_by(*how, tensor.shape), tensor));
      scales.back().file = tensor.file;
      scales.back().begin = scales.back().end = tensor.end;
    } else {
      tensor.dtype = DType::BF16;
      without_scales.push_back(std::string(scales_of(catalog_, tensor.name).front().name));
    }
    if (!is_stack) continue;
    Rule rule{NamePattern(tensor.name), NamePattern(tensor.name)};
    rule.axes = AxisExpression("e o i -> e i o");
    load_map_.rules.insert(load_map_.rules.begin(), std::move(rule));
  }
  if (scales.empty() && without_scales.empty()) return;
  template_.checksums = nullptr;  // they are by the number of a tensor
  std::erase_if(template_.tensors, [&](const SourceTensor& tensor) {
    return std::find(without_scales.begin(), without_scales.end(), tensor.name) != without_scales.end();
  });
  template_.tensors.insert(template_.tensors.end(), scales.begin(), scales.end());
  std::stable_sort(template_.tensors.begin(), template_.tensors.end(),
                   [](const SourceTensor& a, const SourceTensor& b) { return a.name < b.name; });
}

ValuesElsewhere Conversion::values() const {
  const std::size_t bytes = options_.buffer_bytes > 0 ? options_.buffer_bytes : default_buffer_bytes;
  return {std::max(bytes, largest_matrix_), [this](const std::vector<TensorSpec>& parts) {
            LoadPlanOptions how;
            how.strict = false;
            how.resuming = !stored_.empty();
            LoadOptions reading;
            reading.threads = options_.threads;
            std::vector<TensorSpec> named = parts;
            if (!stored_.empty()) {
              for (TensorSpec& part : named) part.fqn = stored_.at(part.fqn);
            }
            load(plan_load(named, catalog_, load_map_, how), catalog_, named, reading);
          }};
}

std::string Conversion::describe() const { return describe_export(specs_, state_, request_, values()); }

ExportReport Conversion::write(const std::string& told) const {
  const ValuesElsewhere elsewhere = values();
  ExportWriting writing;
  writing.threads = options_.threads;
  return write_share(told, specs_, state_, request_, writing, &elsewhere);
}

}  // namespace shardwright
