#include "storage/load/cooperation.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "planner/names/rule_pieces.h"
#include "storage/files/remote_calls.h"

namespace shardwright {
namespace {

/// Smaller pieces would cost more in the asking than in the reading.
constexpr std::uint64_t smallest_piece_bytes = 512;

/// Of shared memory a disk wants many reads at a time more than long ones.
constexpr std::uint64_t most_piece_bytes_in_memory = std::uint64_t{2} << 20;

const SourceTensor& scales_in(const Catalog& catalog, std::int64_t scales) {
  return catalog.tensors[static_cast<std::size_t>(scales)];
}

BoxReading reading_of_box(std::uint32_t tensor, const Shape& shape, const Box& box, const Catalog& catalog,
                          const std::vector<ReadCosts>& costs) {
  const SourceTensor& source = catalog.tensors[tensor];
  return reading_of(source, shape, box, costs[source.file]);
}

Box hull(const Box& a, const Box& b) {
  Box both = a;
  for (std::size_t d = 0; d < a.size.size(); ++d) {
    const std::int64_t end = std::max(a.offset[d] + a.size[d], b.offset[d] + b.size[d]);
    both.offset[d] = std::min(a.offset[d], b.offset[d]);
    both.size[d] = end - both.offset[d];
  }
  return both;
}

/// A rank's transfer from a source.
struct Taker {
  int rank;
  std::uint32_t index;
  const Transfer* transfer;
};

bool is_cached(const Taker& taker, const Catalog& catalog, const CooperationLimits& limits) {
  const auto cached = [&](const SourceTensor& tensor) {
    return limits.costs[tensor.file] == costs_of_cached_files;
  };
  const Transfer& transfer = *taker.transfer;
  return cached(catalog.tensors[transfer.source]) &&
         (transfer.scales < 0 || cached(scales_in(catalog, transfer.scales)));
}

/// What the takers take of a box of their source.
SharedPiece piece_of(const std::vector<Taker>& takers, const Box& within, const Catalog& catalog) {
  SharedPiece piece;
  piece.source = takers.front().transfer->source;
  piece.scales = takers.front().transfer->scales;
  piece.shape = seen_shape(*takers.front().transfer, catalog.tensors[piece.source]);
  if (piece.scales >= 0)
    piece.scale_shape = seen_scale_shape(*takers.front().transfer, scales_in(catalog, piece.scales));
  for (const Taker& taker : takers) {
    SharedPiece::Share share{taker.rank, taker.index, intersection(taker.transfer->source_box, within), {}};
    if (is_empty(share.box)) continue;
    if (piece.scales >= 0) share.scale_box = scale_box_of_part(*taker.transfer, share.box);
    piece.box = piece.shares.empty() ? share.box : hull(piece.box, share.box);
    piece.scale_box = piece.shares.empty() ? share.scale_box : hull(piece.scale_box, share.scale_box);
    piece.shares.push_back(std::move(share));
  }
  return piece;
}

/// Cuts what the takers want of a box into pieces that can be staged.
void cut(const std::vector<Taker>& takers, const Box& within, const Catalog& catalog,
         const CooperationLimits& limits, std::vector<SharedPiece>& pieces) {
  SharedPiece piece = piece_of(takers, within, catalog);
  if (piece.shares.empty()) return;
  const std::uint64_t staged = staged_bytes(task_of(piece, catalog, limits.costs));
  if (staged <= limits.piece_bytes || volume(piece.box.size) == 1) {
    pieces.push_back(std::move(piece));
    return;
  }
  const Strips strips = strips_of(piece.box, staged, limits.piece_bytes);
  Box strip = piece.box;
  const std::int64_t end = piece.box.offset[strips.dimension] + piece.box.size[strips.dimension];
  for (std::int64_t& begin = strip.offset[strips.dimension]; begin < end; begin += strips.width) {
    strip.size[strips.dimension] = std::min(strips.width, end - begin);
    cut(takers, strip, catalog, limits, pieces);
  }
}

/// Cuts what the takers want along the rows where the set of takers changes, and where a piece is full.
std::vector<SharedPiece> pieces_of(const std::vector<Taker>& takers, const Catalog& catalog,
                                   const CooperationLimits& limits) {
  std::vector<SharedPiece> pieces;
  const Transfer& first = *takers.front().transfer;
  const Shape& shape = seen_shape(first, catalog.tensors[first.source]);
  Box band{Shape(shape.size(), 0), shape};
  if (shape.empty()) {
    cut(takers, band, catalog, limits, pieces);
    return pieces;
  }
  std::set<std::int64_t> edges;
  for (const Taker& taker : takers) {
    const Box& box = taker.transfer->source_box;
    edges.insert(box.offset[0]);
    edges.insert(box.offset[0] + box.size[0]);
  }
  for (auto edge = edges.begin(); std::next(edge) != edges.end(); ++edge) {
    band.offset[0] = *edge;
    band.size[0] = *std::next(edge) - *edge;
    cut(takers, band, catalog, limits, pieces);
  }
  return pieces;
}

/// Bytes that each rank handles in the round that is being filled.
struct Round {
  std::vector<std::uint64_t> read, sent, received;

  explicit Round(std::size_t ranks) : read(ranks), sent(ranks), received(ranks) {}
  void add(const SharedPiece& piece, std::uint64_t bytes_to_read, const Catalog& catalog) {
    const auto reader = static_cast<std::size_t>(piece.reader);
    read[reader] += bytes_to_read;
    for (const SharedPiece::Share& share : piece.shares) {
      if (share.rank == piece.reader) continue;
      const std::uint64_t bytes = bytes_of_share(piece, share, catalog);
      sent[reader] += bytes;
      received[static_cast<std::size_t>(share.rank)] += bytes;
    }
  }
  std::uint64_t most() const {
    return std::max({*std::max_element(read.begin(), read.end()), *std::max_element(sent.begin(), sent.end()),
                     *std::max_element(received.begin(), received.end())});
  }
};

}  // namespace

std::uint64_t bytes_of_share(const SharedPiece& piece, const SharedPiece::Share& share,
                             const Catalog& catalog) {
  const auto bytes = [](const Box& box, DType dtype) {
    return static_cast<std::uint64_t>(bytes_of_box(dtype, box));
  };
  return bytes(share.box, catalog.tensors[piece.source].dtype) +
         (piece.scales < 0 ? 0 : bytes(share.scale_box, scales_in(catalog, piece.scales).dtype));
}

ReadTask task_of(const SharedPiece& piece, const Catalog& catalog, const std::vector<ReadCosts>& costs) {
  ReadTask task;
  task.source = piece.source;
  task.scale_source = piece.scales;
  task.shape = piece.shape;
  task.box = piece.box;
  task.weights = reading_of_box(piece.source, piece.shape, piece.box, catalog, costs);
  if (piece.scales >= 0) {
    task.scale_box = piece.scale_box;
    task.scale_shape = piece.scale_shape;
    task.scales = reading_of_box(static_cast<std::uint32_t>(piece.scales), piece.scale_shape, piece.scale_box,
                                 catalog, costs);
  }
  return task;
}

CooperationLimits agreed_limits(const std::vector<CooperationTerms>& terms_of_ranks, const Catalog& catalog,
                                HandingOver way) {
  const ReadCosts& costs = is_remote(catalog.directory) ? costs_of_remote_objects : costs_of_cached_files;
  CooperationLimits limits{std::vector<ReadCosts>(catalog.files.size(), costs),
                           std::numeric_limits<std::uint64_t>::max(),
                           std::numeric_limits<std::uint64_t>::max()};
  for (const CooperationTerms& terms : terms_of_ranks) {
    limits.piece_bytes = std::min(limits.piece_bytes, terms.piece_bytes);
    limits.round_bytes = std::min(limits.round_bytes, terms.round_bytes);
    for (std::size_t file = 0; file < catalog.files.size(); ++file) {
      const auto& names = terms.files_on_disk;
      if (std::find(names.begin(), names.end(), catalog.files[file].name) != names.end()) {
        limits.costs[file] = costs_of_files_on_disk;
      }
    }
  }
  if (way == HandingOver::in_rounds) {
    const std::uint64_t to_all = limits.round_bytes / std::max<std::size_t>(1, terms_of_ranks.size());
    limits.piece_bytes = std::min(limits.piece_bytes, to_all);
  } else {
    limits.piece_bytes = std::min(limits.piece_bytes, most_piece_bytes_in_memory);
  }
  limits.piece_bytes = std::max(smallest_piece_bytes, limits.piece_bytes);
  return limits;
}

Cooperation cooperate(const std::vector<std::vector<Transfer>>& transfers_of_ranks, const Catalog& catalog,
                      const CooperationLimits& limits) {
  const std::size_t ranks = transfers_of_ranks.size();
  Cooperation cooperation;
  // By place in the files; what is seen in different shapes is read apart.
  std::map<std::tuple<std::uint32_t, std::uint64_t, std::uint32_t, std::int64_t, Shape>, std::vector<Taker>>
      sources;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::vector<Transfer>& transfers = transfers_of_ranks[rank];
    cooperation.shared.emplace_back(transfers.size(), false);
    for (std::uint32_t t = 0; t < transfers.size(); ++t) {
      if (is_empty(transfers[t].source_box)) continue;
      const SourceTensor& source = catalog.tensors[transfers[t].source];
      sources[{source.file, source.begin, transfers[t].source, transfers[t].scales, transfers[t].source_view}]
          .push_back({static_cast<int>(rank), t, &transfers[t]});
    }
  }

  std::vector<std::uint64_t> read_by(ranks, 0);
  Round round(ranks);
  cooperation.round_begins = {0};
  for (const auto& [place, takers] : sources) {
    if (limits.cached_files_apart && is_cached(takers.front(), catalog, limits)) continue;
    std::uint64_t apart = 0;
    for (const Taker& taker : takers) {
      const Transfer& transfer = *taker.transfer;
      const Shape& shape = seen_shape(transfer, catalog.tensors[transfer.source]);
      apart +=
          reading_of_box(transfer.source, shape, transfer.source_box, catalog, limits.costs).staged_bytes;
      if (transfer.scales >= 0) {
        apart += reading_of_box(static_cast<std::uint32_t>(transfer.scales),
                                seen_scale_shape(transfer, scales_in(catalog, transfer.scales)),
                                transfer.scale_box, catalog, limits.costs)
                     .staged_bytes;
      }
    }
    std::vector<SharedPiece> pieces = pieces_of(takers, catalog, limits);
    std::vector<std::uint64_t> bytes;  // of each piece
    for (const SharedPiece& piece : pieces) bytes.push_back(task_of(piece, catalog, limits.costs).bytes());
    if (std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0}) >= apart) continue;

    for (const Taker& taker : takers) {
      cooperation.shared[static_cast<std::size_t>(taker.rank)][taker.index] = true;
    }
    for (std::size_t p = 0; p < pieces.size(); ++p) {
      SharedPiece& piece = pieces[p];
      piece.reader =
          std::min_element(piece.shares.begin(), piece.shares.end(), [&](const auto& a, const auto& b) {
            return read_by[static_cast<std::size_t>(a.rank)] < read_by[static_cast<std::size_t>(b.rank)];
          })->rank;
      read_by[static_cast<std::size_t>(piece.reader)] += bytes[p];
      Round with = round;
      with.add(piece, bytes[p], catalog);
      if (with.most() > limits.round_bytes && cooperation.round_begins.back() < cooperation.pieces.size()) {
        cooperation.round_begins.push_back(cooperation.pieces.size());
        with = Round(ranks);
        with.add(piece, bytes[p], catalog);
      }
      round = std::move(with);
      cooperation.pieces.push_back(std::move(piece));
    }
  }
  if (cooperation.round_begins.back() < cooperation.pieces.size()) {
    cooperation.round_begins.push_back(cooperation.pieces.size());
  }
  return cooperation;
}

}  // namespace shardwright
