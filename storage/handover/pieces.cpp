#include "storage/handover/pieces.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "storage/format/checksum.h"
#include "storage/format/read_catalog.h"
#include "storage/handover/changed_blocks.h"
#include "storage/handover/piece_order.h"
#include "storage/handover/piece_source.h"
#include "storage/handover/stored_box.h"
#include "storage/rounded_up.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Fills one bucket.
class Bucket {
 public:
  Bucket(PieceSource& source, std::byte* memory)
      : source_(source), catalog_(source.encoding->layout().catalog), memory_(memory) {}

  /// Lays a unit out behind those before.
  void add(std::size_t number) {
    const PieceUnit& unit = source_.units[number];
    laid_.push_back({number, pieces_.size(), tasks_.size(), used_});
    if (unit.task >= 0) {
      add_task(static_cast<std::size_t>(unit.task));
    } else {
      add_given(source_.given[static_cast<std::size_t>(unit.given)]);
    }
  }

  /// Encodes, and returns the pieces.
  std::vector<EncodedPiece> encode() {
    if (!tasks_.empty()) {
      const EncodingFigures figures = encode_into_memory(*source_.encoding, tasks_);
      beside_ = std::max(beside_, figures.gathered.pinned_bytes + figures.staging_bytes);
    }
    if (source_.sums != nullptr) keep_changed();
    source_.peak_staging_bytes = std::max(source_.peak_staging_bytes, beside_);
    return std::move(pieces_);
  }

 private:
  /// A unit in the bucket: its first piece, its task (of a unit that has one), its first byte.
  struct Laid {
    std::size_t unit;
    std::size_t first_piece;
    std::size_t task;
    std::size_t begin;
  };

  void add_given(const ReadyBytes& given) {
    const SourceTensor& tensor = catalog_.tensors[given.tensor];
    std::byte* to = add_piece({given.tensor, tensor.shape, given.box, nullptr, -1});
    const bool is_read = given.made.empty() && !is_empty(given.box);
    const std::vector<std::byte> read =
        is_read ? source_.encoding->templates()->bytes_of(tensor.name, given.box) : std::vector<std::byte>();
    const std::vector<std::byte>& bytes = is_read ? read : given.made;
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    beside_ = std::max(beside_, read.size());
  }

  void add_task(std::size_t number) {
    const EncodingSource& encoding = *source_.encoding;
    TaskInMemory task{encoding.work().tasks[number], {}, nullptr, nullptr};
    task.boxes = boxes_of(task.task, encoding.work(), encoding.parts(), encoding.layout());
    if (!is_empty(task.boxes.elements.box)) task.elements = add_piece(task.boxes.elements);
    if (task.boxes.scales && !is_empty(task.boxes.scales->box)) task.scales = add_piece(*task.boxes.scales);
    tasks_.push_back(std::move(task));
  }

  std::byte* add_piece(const EncodedBox& encoded) {
    const std::size_t bytes = bytes_of(encoded, catalog_);
    pieces_.push_back(piece_at(encoded, used_));
    std::byte* to = memory_ + used_;
    used_ += room_for_piece(bytes);
    return to;
  }

  EncodedPiece piece_at(const EncodedBox& encoded, std::size_t offset) const {
    const SourceTensor& tensor = catalog_.tensors[encoded.tensor];
    StoredBox stored = stored_box(tensor, encoded.shape, encoded.box);
    EncodedPiece piece;
    piece.name = stored_name(tensor);
    piece.layer = layer_of(weight_of(tensor.name));
    piece.place = source_.order.layers[encoded.tensor];
    piece.dtype = tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
    piece.shape = tensor.stored == nullptr ? tensor.shape : tensor.stored->shape;
    piece.unit = stored.unit;
    piece.view = std::move(stored.view);
    piece.box = std::move(stored.box);
    piece.offset = offset;
    piece.bytes = bytes_of(encoded, catalog_);
    return piece;
  }

  /// The blocks of a unit that have a checksum, and these.
  struct Summed {
    std::vector<Box> blocks;  // of a task; of given bytes none
    std::vector<std::uint64_t> sums;
  };

  Summed sums_of(const Laid& laid) const {
    Summed summed;
    if (source_.units[laid.unit].task >= 0) {
      const TaskInMemory& task = tasks_[laid.task];
      summed.blocks = summed_blocks(*source_.encoding, task.task, source_.sums->block_bytes);
      for (const Box& block : summed.blocks)
        summed.sums.push_back(sum_of_block(*source_.encoding, task, block));
    } else {
      const EncodedPiece& piece = pieces_[laid.first_piece];
      summed.sums.push_back(checksum_of(memory_ + piece.offset, piece.bytes));
    }
    return summed;
  }

  /// Compares with the sums of the time before, and moves what has changed to the front.
  void keep_changed() {
    std::vector<Summed> summed(laid_.size());
    for_each_index(laid_.size(), source_.encoding->options().threads,
                   [&](std::size_t n) { summed[n] = sums_of(laid_[n]); });
    std::vector<EncodedPiece> all = std::move(pieces_);
    pieces_.clear();
    used_ = 0;
    for (std::size_t n = 0; n < laid_.size(); ++n) {
      const std::size_t end = n + 1 < laid_.size() ? laid_[n + 1].first_piece : all.size();
      const std::span<EncodedPiece> of_unit(all.data() + laid_[n].first_piece, all.data() + end);
      const std::vector<bool> changed = note(laid_[n].unit, summed[n].sums);
      const auto count = std::count(changed.begin(), changed.end(), true);
      if (count == 0) continue;
      if (count == std::ssize(changed) || !move_changed(laid_[n], summed[n].blocks, changed))
        move_whole(of_unit);
    }
  }

  /// Notes the sums of a unit; says which blocks are not what the receiver has.
  std::vector<bool> note(std::size_t unit, const std::vector<std::uint64_t>& found) {
    PieceSums& known = *source_.sums;
    if (known.first_of_unit.size() == unit) {
      known.first_of_unit.push_back(known.sums.size());
      known.sums.resize(known.sums.size() + found.size());
      known.is_known.resize(known.sums.size(), false);
    }
    if (unit >= known.first_of_unit.size() || known.first_of_unit[unit] + found.size() > known.sums.size())
      throw Error(ErrorKind::argument,
                  "changed_since: another run has begun with these sums meanwhile; give each run its own, or "
                  "end the one before the next");
    const std::size_t first = known.first_of_unit[unit];
    std::vector<bool> changed(found.size());
    for (std::size_t b = 0; b < found.size(); ++b) {
      changed[b] = !known.is_known[first + b] || known.sums[first + b] != found[b];
      if (changed[b]) known.is_known[first + b] = false;  // until the receiver has it
      known.sums[first + b] = found[b];
    }
    return changed;
  }

  void move_whole(std::span<EncodedPiece> pieces) {
    for (EncodedPiece& piece : pieces) {
      std::memmove(memory_ + used_, memory_ + piece.offset, piece.bytes);  // never further back
      piece.offset = used_;
      used_ += room_for_piece(piece.bytes);
      pieces_.push_back(std::move(piece));
    }
  }

  /// Puts what has changed of a task together; false, with nothing done, where that would take more than all
  /// of it.
  bool move_changed(const Laid& laid, const std::vector<Box>& blocks, const std::vector<bool>& changed) {
    const TaskInMemory& task = tasks_[laid.task];
    std::vector<Box> parts;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      if (changed[b]) parts.push_back(blocks[b]);
    }
    std::vector<EncodedPiece> pieces;
    put_together_.clear();
    const auto add = [&](const EncodedBox& whole, const std::byte* memory, const EncodedBox& part) {
      if (is_empty(part.box)) return;
      constexpr std::size_t grid = 16;  // no element is larger
      const std::size_t at = rounded_up(put_together_.size(), grid);
      put_together_.resize(at + bytes_of(part, catalog_));
      copy_out_of(whole, memory, part, catalog_.tensors[part.tensor].dtype, put_together_.data() + at);
      pieces.push_back(piece_at(part, used_ + at));
    };
    for (const Box& part : joined_blocks(std::move(parts))) {
      const BoxesOfTask boxes = boxes_of_part(*source_.encoding, task.task, part);
      add(task.boxes.elements, task.elements, boxes.elements);
      if (boxes.scales) add(*task.boxes.scales, task.scales, *boxes.scales);
    }
    beside_ = std::max(beside_, put_together_.capacity());
    if (put_together_.size() > source_.units[laid.unit].bytes) return false;
    if (!put_together_.empty()) std::memcpy(memory_ + used_, put_together_.data(), put_together_.size());
    used_ += room_for_piece(put_together_.size());
    std::move(pieces.begin(), pieces.end(), std::back_inserter(pieces_));
    return true;
  }

  PieceSource& source_;
  const Catalog& catalog_;
  std::byte* memory_;
  std::size_t used_ = 0;
  std::size_t beside_ = 0;  // memory that was taken beside the bucket
  std::vector<Laid> laid_;
  std::vector<TaskInMemory> tasks_;
  std::vector<EncodedPiece> pieces_;
  std::vector<std::byte> put_together_;
};

}  // namespace

Pieces::Pieces(std::unique_ptr<PieceSource> source) : source_(std::move(source)) {}
Pieces::Pieces(Pieces&&) noexcept = default;
Pieces::~Pieces() = default;

std::size_t Pieces::bucket_bytes() const { return source_->room; }
std::uint64_t Pieces::bytes() const { return source_->bytes; }
std::size_t Pieces::peak_staging_bytes() const { return source_->peak_staging_bytes; }

std::vector<HandedTensor> Pieces::tensors() const {
  const ExportLayout& layout = source_->encoding->layout();
  const std::vector<SourceTensor>& stored = layout.catalog.tensors;
  std::vector<std::size_t> weights(stored.size());
  const auto index_of = [&](std::string_view name, std::size_t otherwise) {
    const std::span<const SourceTensor> found = layout.catalog.find(name);
    return found.empty() ? otherwise : static_cast<std::size_t>(found.data() - stored.data());
  };
  for (std::size_t t = 0; t < stored.size(); ++t) weights[t] = index_of(weight_of(stored[t].name), t);
  for (const Made& made : layout.made) {
    if (!made.how.weight.empty()) weights[made.tensor] = index_of(made.how.weight, made.tensor);
  }
  std::vector<std::size_t> order(stored.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::vector<std::uint32_t>& places = source_->order.places;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::tuple(places[weights[a]], weights[a] != a, places[a]) <
           std::tuple(places[weights[b]], weights[b] != b, places[b]);
  });
  std::vector<HandedTensor> tensors;
  for (const std::size_t t : order) {
    const SourceTensor& tensor = stored[t];
    tensors.push_back({stored_name(tensor), tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype,
                       tensor.stored == nullptr ? tensor.shape : tensor.stored->shape,
                       layer_of(stored[weights[t]].name), stored_name(stored[weights[t]])});
  }
  return tensors;
}

std::vector<EncodedPiece> Pieces::next(std::byte* memory) {
  PieceSource& source = *source_;
  std::vector<EncodedPiece> pieces;
  while (pieces.empty() && source.next < source.units.size()) {  // of a bucket nothing may have changed
    Bucket bucket(source, memory);
    std::size_t used = 0;
    std::size_t end = source.next;
    for (; end < source.units.size(); ++end) {
      const std::size_t bytes = source.units[end].bytes;
      if (used > 0 && used + bytes > source.bucket_bytes) break;
      bucket.add(end);
      used += bytes;
    }
    pieces = bucket.encode();
    source.next = end;
  }
  return pieces;
}

void Pieces::keep_sums() {
  if (source_->sums != nullptr) source_->sums->is_known.assign(source_->sums->sums.size(), true);
}

Pieces begin_pieces(const std::vector<TensorSpec>& specs, const Job& job, const PieceOptions& options) {
  auto template_catalog = std::make_unique<Catalog>();
  ExportRequest request;
  RankState state;
  const std::string share = round_of(
      job,
      [&] {
        request.model = options.model;
        request.layout = options.layout;
        request.set_quantization(options.quantization, options.quantized_weights);
        request.strict = options.strict;
        request.strict_dtypes = options.strict_dtypes;
        if (!options.template_directory.empty()) {
          *template_catalog = read_catalog(options.template_directory, options.threads);
          request.template_catalog = template_catalog.get();
        }
        state = state_of(specs, job.rank);
        return describe_export(specs, state, request, options.devices);
      },
      [&](const std::vector<std::string>& holdings) { return plan_export(holdings, request, {}).shares; });
  std::unique_ptr<PieceSource> source;
  on_all_ranks(job, [&] {
    source = piece_source(share, specs, state, request, options.bucket_bytes, options.changed_since,
                          {options.threads, options.staging_bytes, options.devices, nullptr});
  });
  source->template_catalog = std::move(template_catalog);
  return Pieces(std::move(source));
}

}  // namespace shardwright
