#include "storage/handover/pieces.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "storage/format/read_catalog.h"
#include "storage/handover/piece_order.h"
#include "storage/handover/piece_source.h"
#include "storage/handover/stored_box.h"

namespace shardwright {
namespace {

constexpr std::size_t alignment = 64;

/// Fills one bucket.
class Bucket {
 public:
  Bucket(const PieceSource& source, std::byte* memory)
      : source_(source), catalog_(source.encoding->layout().catalog), memory_(memory) {}

  void add(const PieceUnit& unit) {
    if (unit.task >= 0) return add_task(static_cast<std::size_t>(unit.task));
    const GivenBytes& given = source_.given[static_cast<std::size_t>(unit.given)];
    const SourceTensor& tensor = catalog_.tensors[given.tensor];
    std::byte* to = add_piece({given.tensor, tensor.shape, given.box, nullptr, -1});
    const std::vector<std::byte> read = given.made.empty() && !is_empty(given.box)
                                            ? source_.encoding->templates()->bytes_of(tensor.name, given.box)
                                            : std::vector<std::byte>();
    const std::vector<std::byte>& bytes = given.made.empty() ? read : given.made;
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    read_ = std::max(read_, read.size());
  }

  /// Returns the pieces.
  std::vector<EncodedPiece> encode(std::size_t& peak_staging) {
    if (!tasks_.empty()) {
      const EncodingFigures figures = encode_into_memory(*source_.encoding, tasks_);
      peak_staging = std::max(peak_staging, figures.gathered.pinned_bytes + figures.staging_bytes);
    }
    peak_staging = std::max(peak_staging, read_);
    return std::move(pieces_);
  }

 private:
  void add_task(std::size_t number) {
    const EncodingSource& encoding = *source_.encoding;
    TaskInMemory task{encoding.work().tasks[number], {}, nullptr, nullptr};
    task.boxes = boxes_of(task.task, encoding.work(), encoding.parts(), encoding.layout());
    if (!is_empty(task.boxes.elements.box)) task.elements = add_piece(task.boxes.elements);
    if (task.boxes.scales && !is_empty(task.boxes.scales->box)) task.scales = add_piece(*task.boxes.scales);
    tasks_.push_back(std::move(task));
  }

  std::byte* add_piece(const EncodedBox& encoded) {
    const SourceTensor& tensor = catalog_.tensors[encoded.tensor];
    StoredBox stored = stored_box(tensor, encoded.shape, encoded.box);
    const std::size_t bytes = bytes_of(encoded, catalog_);
    pieces_.push_back({stored_name(tensor), layer_of(weight_of(tensor.name)),
                       tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype,
                       tensor.stored == nullptr ? tensor.shape : tensor.stored->shape, stored.unit,
                       std::move(stored.view), std::move(stored.box), used_, bytes});
    std::byte* to = memory_ + used_;
    used_ += (bytes + alignment - 1) / alignment * alignment;
    return to;
  }

  const PieceSource& source_;
  const Catalog& catalog_;
  std::byte* memory_;
  std::size_t used_ = 0;
  std::size_t read_ = 0;  // of the template at once
  std::vector<TaskInMemory> tasks_;
  std::vector<EncodedPiece> pieces_;
};

}  // namespace

Pieces::Pieces(std::unique_ptr<PieceSource> source) : source_(std::move(source)) {}
Pieces::Pieces(Pieces&&) noexcept = default;
Pieces::~Pieces() = default;

std::size_t Pieces::bucket_bytes() const { return source_->room; }
std::uint64_t Pieces::bytes() const { return source_->bytes; }
std::size_t Pieces::peak_staging_bytes() const { return source_->peak_staging_bytes; }

std::vector<EncodedPiece> Pieces::next(std::byte* memory) {
  PieceSource& source = *source_;
  std::vector<EncodedPiece> pieces;
  while (pieces.empty() && source.next < source.units.size()) {  // a unit may be of no whole byte
    Bucket bucket(source, memory);
    std::size_t used = 0;
    std::size_t end = source.next;
    for (; end < source.units.size(); ++end) {
      const PieceUnit& unit = source.units[end];
      if (used > 0 && used + unit.bytes > source.bucket_bytes) break;
      bucket.add(unit);
      used += unit.bytes;
    }
    pieces = bucket.encode(source.peak_staging_bytes);
    source.next = end;
  }
  return pieces;
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
    source = piece_source(share, specs, state, request, options.bucket_bytes,
                          {options.threads, options.staging_bytes, options.devices, nullptr});
  });
  source->template_catalog = std::move(template_catalog);
  return Pieces(std::move(source));
}

}  // namespace shardwright
