#include "storage/handover/piece_source.h"

#include <algorithm>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "storage/handover/piece_order.h"
#include "storage/threads.h"
#include "storage/write/made_tensors.h"

namespace shardwright {
namespace {

/// Each piece begins at a multiple of it.
constexpr std::size_t alignment = 64;

std::size_t room_for(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

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
        places_(places_by_layer(catalog_)) {}

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
    std::size_t bytes = room_for(bytes_of(boxes.elements, catalog_));
    if (boxes.scales) bytes += room_for(bytes_of(*boxes.scales, catalog_));
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
      const std::size_t room = room_for(bytes.size());
      return add_given(tensor, whole(stored.shape), std::move(bytes), place, offset, room);
    }
    std::vector<Box> boxes;
    cut_given(stored, whole(stored.shape), source_.bucket_bytes - alignment, boxes);
    for (Box& box : boxes) {
      const std::size_t room = room_for(static_cast<std::size_t>(bytes_of_box(stored.dtype, box)));
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
  const std::vector<std::uint32_t> places_;
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

}  // namespace

std::unique_ptr<PieceSource> piece_source(const std::string& share, const std::vector<TensorSpec>& specs,
                                          const RankState& state, const ExportRequest& request,
                                          std::size_t bucket_bytes, const ExportWriting& options) {
  if (bucket_bytes < smallest_bucket) {
    throw Error(ErrorKind::argument, "bucket_bytes is " + std::to_string(bucket_bytes) +
                                         "; expected at least " + std::to_string(smallest_bucket));
  }
  auto source = std::make_unique<PieceSource>();
  source->bucket_bytes = bucket_bytes;
  source->encoding =
      std::make_unique<EncodingSource>(share, specs, state, request, PartsOfRank::written,
                                       bucket_bytes - 2 * alignment, with_staging(options, specs));
  Orderer(*source).run();
  source->room = fullest(*source);
  for (const PieceUnit& unit : source->units) source->bytes += unit.bytes;
  return source;
}

}  // namespace shardwright
