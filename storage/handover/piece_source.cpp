#include "storage/handover/piece_source.h"

#include <algorithm>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "storage/format/checksum.h"
#include "storage/threads.h"
#include "storage/write/made_tensors.h"

namespace shardwright {
namespace {

/// Memory between tensors and bucket for each thread, if the caller does not say: what a core's cache holds,
/// for encoded bytes to be copied from there.
constexpr std::size_t default_buffer_bytes = std::size_t{1} << 20;

ExportWriting with_staging(ExportWriting options, const std::vector<TensorSpec>& specs) {
  const bool on_devices = !tensors_on_devices(specs).empty();
  if (options.staging_bytes == 0 && !on_devices) {
    const int threads = options.threads > 0 ? options.threads : processors();
    options.staging_bytes = static_cast<std::size_t>(threads) * default_buffer_bytes;
  }
  return options;
}

/// Cuts a box along its outermost dimensions into boxes of so many bytes.
void cut_given(const SourceTensor& tensor, const Box& box, std::size_t most, std::vector<Box>& boxes) {
  const auto bytes = static_cast<std::size_t>(bytes_of_box(tensor.dtype, box));
  std::size_t d = 0;
  while (d < box.size.size() && box.size[d] == 1) ++d;
  if (bytes <= most || d == box.size.size()) return boxes.push_back(box);
  const std::int64_t grid = is_packed(tensor.dtype) && d + 1 == box.size.size() ? 2 : 1;
  const auto of_index = static_cast<std::int64_t>(bytes) / box.size[d];
  std::int64_t strip = static_cast<std::int64_t>(most) / std::max<std::int64_t>(1, of_index);
  strip = std::max(grid, strip - strip % grid);
  if (strip >= box.size[d]) return boxes.push_back(box);
  for (std::int64_t done = 0; done < box.size[d]; done += strip) {
    Box part = box;
    part.offset[d] += done;
    part.size[d] = std::min(strip, box.size[d] - done);
    cut_given(tensor, part, most, boxes);
  }
}

/// Orders what this rank hands over.
class Orderer {
 public:
  explicit Orderer(PieceSource& source)
      : source_(source),
        layout_(source.encoding->layout()),
        catalog_(layout_.catalog),
        places_(source.order.places) {}

  void run() {
    find_given();
    const std::vector<ExportTask>& tasks = source_.encoding->work().tasks;
    for (std::size_t n = 0; n < tasks.size(); ++n) add_task(n);
    for (const auto& [weight, companions] : of_weight_) {
      if (comes_from_nobody(weight)) add_of_header(companions);
    }
    for (std::uint32_t t = 0; t < catalog_.tensors.size(); ++t) {  // files have tensors without elements
      if (volume(catalog_.tensors[t].shape) == 0 && has_header_of(t))
        add_given(t, whole(catalog_.tensors[t].shape), {}, places_[t], {}, 0);
    }
    std::sort(keys_.begin(), keys_.end());
    for (const auto& [place, offset, number, unit] : keys_) source_.units.push_back(unit_of_[unit]);
  }

 private:
  /// Place of the weight, where in it, then as they were found.
  using Key = std::tuple<std::uint32_t, Shape, std::size_t, std::size_t>;

  void find_given() {
    for (const std::uint32_t tensor : layout_.copied) note_given(tensor, nullptr);
    for (const Made& made : layout_.made) note_given(made.tensor, &made);
    for (const std::uint32_t file : source_.encoding->parts().headers) headers_.insert(file);
  }

  void note_given(std::uint32_t tensor, const Made* made) {
    given_.insert(tensor);
    const std::string& name = catalog_.tensors[tensor].name;
    of_weight_[made != nullptr && !made->how.weight.empty() ? made->how.weight : std::string(weight_of(name))]
        .push_back({tensor, made});
  }

  void add_task(std::size_t number) {
    const EncodingSource& encoding = *source_.encoding;
    const ExportTask& task = encoding.work().tasks[number];
    const Transfer& transfer = encoding.transfer_of(task);
    const BoxesOfTask boxes = boxes_of(task, encoding.work(), encoding.parts(), layout_);
    std::size_t bytes = room_for_piece(bytes_of(boxes.elements, catalog_));
    if (boxes.scales) bytes += room_for_piece(bytes_of(*boxes.scales, catalog_));
    const std::uint32_t place = places_[transfer.source];
    add({static_cast<std::int64_t>(number), -1, bytes}, place, task.box.offset);
    const bool is_first = std::all_of(task.box.offset.begin(), task.box.offset.end(),
                                      [](std::int64_t offset) { return offset == 0; });
    const auto companions = of_weight_.find(catalog_.tensors[transfer.source].name);
    if (!is_first || companions == of_weight_.end()) return;
    for (const auto& [tensor, made] : companions->second)
      add_whole(tensor, made, place, task.box.offset);  // whoever has the first element has these
  }

  /// Whether no rank has an element of a tensor of that name.
  bool comes_from_nobody(const std::string& weight) const {
    const std::span<const SourceTensor> found = catalog_.find(weight);
    if (found.empty() || volume(found.front().shape) == 0) return true;
    return given_.contains(static_cast<std::uint32_t>(found.data() - catalog_.tensors.data()));
  }

  bool has_header_of(std::uint32_t tensor) const { return headers_.contains(catalog_.tensors[tensor].file); }

  struct Companion {
    std::uint32_t tensor;
    const Made* made;
  };

  void add_of_header(const std::vector<Companion>& companions) {
    for (const auto& [tensor, made] : companions) {
      if (has_header_of(tensor) && volume(catalog_.tensors[tensor].shape) > 0)
        add_whole(tensor, made, places_[tensor], {});
    }
  }

  void add_whole(std::uint32_t tensor, const Made* made, std::uint32_t place, const Shape& offset) {
    const SourceTensor& stored = catalog_.tensors[tensor];
    if (volume(stored.shape) == 0) return;
    if (made != nullptr) {
      std::vector<std::byte> bytes = bytes_of_made(*made, layout_, source_.encoding->parts().numbers);
      const std::size_t room = room_for_piece(bytes.size());
      return add_given(tensor, whole(stored.shape), std::move(bytes), place, offset, room);
    }
    std::vector<Box> boxes;
    cut_given(stored, whole(stored.shape), source_.bucket_bytes - piece_alignment, boxes);
    for (Box& box : boxes) {
      const std::size_t room = room_for_piece(static_cast<std::size_t>(bytes_of_box(stored.dtype, box)));
      add_given(tensor, std::move(box), {}, place, offset, room);
    }
  }

  void add_given(std::uint32_t tensor, Box box, std::vector<std::byte> made, std::uint32_t place,
                 const Shape& offset, std::size_t room) {
    source_.given.push_back({tensor, std::move(box), std::move(made)});
    add({-1, std::ssize(source_.given) - 1, room}, place, offset);
  }

  void add(const PieceUnit& unit, std::uint32_t place, const Shape& offset) {
    keys_.emplace_back(place, offset, keys_.size(), unit_of_.size());
    unit_of_.push_back(unit);
  }

  PieceSource& source_;
  const ExportLayout& layout_;
  const Catalog& catalog_;
  const std::vector<std::uint32_t>& places_;
  std::unordered_map<std::string, std::vector<Companion>> of_weight_;
  std::unordered_set<std::uint32_t> given_;    // tensors
  std::unordered_set<std::uint32_t> headers_;  // files
  std::vector<Key> keys_;
  std::vector<PieceUnit> unit_of_;
};

/// Bytes of the fullest bucket, when each takes as many units as it has room for.
std::size_t fullest(const PieceSource& source) {
  std::size_t most = 0;
  std::size_t used = 0;
  for (const PieceUnit& unit : source.units) {
    if (used > 0 && used + unit.bytes > source.bucket_bytes) used = 0;
    used += unit.bytes;
    most = std::max(most, used);
  }
  return most;
}

/// Of what the units are: equal where each unit has the same blocks.
std::uint64_t hash_of_units(const PieceSource& source) {
  const Catalog& catalog = source.encoding->layout().catalog;
  std::uint64_t hash = source.sums->block_bytes;
  const auto add = [&](const std::string& text) { hash = checksum_of(text.data(), text.size(), hash); };
  for (const PieceUnit& unit : source.units) {
    const bool is_task = unit.task >= 0;
    const ExportTask* task =
        is_task ? &source.encoding->work().tasks[static_cast<std::size_t>(unit.task)] : nullptr;
    const ReadyBytes* given = is_task ? nullptr : &source.given[static_cast<std::size_t>(unit.given)];
    const std::uint32_t tensor = is_task ? source.encoding->transfer_of(*task).source : given->tensor;
    const SourceTensor& stored = catalog.tensors[tensor];
    const Shape& seen = is_task ? seen_shape(source.encoding->transfer_of(*task), stored) : stored.shape;
    add(stored_name(stored) + " " + std::string(name_of(stored.dtype)) + to_string(seen) +
        to_string(is_task ? task->box : given->box));
    if (!is_task) continue;
    const Encoding& encoding = source.encoding->transfer_of(*task).encoding;
    add(encoding.scaled ? std::string(name_of(encoding.element)) + std::string(name_of(encoding.scale)) +
                              to_string(Shape{encoding.block_rows, encoding.block_columns})
                        : "");
  }
  return hash;
}

/// Bytes of a task whose blocks have checksums: what has changed of it is put together beside the bucket.
constexpr std::size_t most_summed = std::size_t{8} << 20;

}  // namespace

std::unique_ptr<PieceSource> piece_source(const std::string& share, const std::vector<TensorSpec>& specs,
                                          const RankState& state, const ExportRequest& request,
                                          std::size_t bucket_bytes, PieceSums* changed_since,
                                          const ExportWriting& options) {
  if (bucket_bytes < smallest_bucket) {
    throw Error(ErrorKind::argument, "bucket_bytes is " + std::to_string(bucket_bytes) +
                                         "; expected at least " + std::to_string(smallest_bucket));
  }
  auto source = std::make_unique<PieceSource>();
  source->bucket_bytes = bucket_bytes;
  const std::size_t most = changed_since == nullptr ? bucket_bytes : std::min(bucket_bytes, most_summed);
  source->encoding =
      std::make_unique<EncodingSource>(share, specs, state, request, PartsOfRank::written,
                                       most - 2 * piece_alignment, with_staging(options, specs));
  source->order = order_by_layer(source->encoding->layout().catalog);
  Orderer(*source).run();
  source->room = fullest(*source);
  for (const PieceUnit& unit : source->units) source->bytes += unit.bytes;
  if (changed_since == nullptr) return source;
  source->sums = changed_since;
  const std::uint64_t plan = hash_of_units(*source);
  if (changed_since->plan != plan || changed_since->first_of_unit.size() != source->units.size()) {
    changed_since->forget();
    changed_since->plan = plan;
  }
  return source;
}

}  // namespace shardwright
