#include "storage/cooperation.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "storage/box_reading.h"

namespace shardwright {
namespace {

/// A piece is at most this large where its rows allow it, so that staging stays in the cache of a core.
constexpr std::uint64_t piece_bytes = std::uint64_t{1} << 20;
constexpr std::int64_t rows_in_a_cache_line = 64;

std::uint64_t bytes_of_elements(DType dtype) { return static_cast<std::uint64_t>(bytes_of(dtype)); }

const SourceTensor& scales_in(const Catalog& catalog, std::int64_t scales) {
  return catalog.tensors[static_cast<std::size_t>(scales)];
}

std::uint64_t bytes_to_read(const SourceTensor& tensor, const Box& box) {
  return reading_of(tensor.begin, tensor.shape, bytes_of_elements(tensor.dtype), box).staged_bytes;
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

/// The rows begin .. end - 1 of a source and all who take something of them.
SharedPiece piece_of(const std::vector<Taker>& takers, std::int64_t begin, std::int64_t end) {
  SharedPiece piece;
  piece.source = takers.front().transfer->source;
  piece.scales = takers.front().transfer->scales;
  for (const Taker& taker : takers) {
    SharedPiece::Share share{taker.rank, taker.index, taker.transfer->source_box, {}};
    if (!share.box.size.empty()) {
      const std::int64_t first = std::max(begin, share.box.offset[0]);
      share.box.size[0] = std::min(end, share.box.offset[0] + share.box.size[0]) - first;
      share.box.offset[0] = first;
      if (share.box.size[0] <= 0) continue;
    }
    if (piece.scales >= 0) share.scale_box = scale_box_of_part(*taker.transfer, share.box);
    piece.box = piece.shares.empty() ? share.box : hull(piece.box, share.box);
    piece.scale_box = piece.shares.empty() ? share.scale_box : hull(piece.scale_box, share.scale_box);
    piece.shares.push_back(std::move(share));
  }
  return piece;
}

/// Cuts what the takers want along the rows where the set of takers changes, and where a piece is full.
std::vector<SharedPiece> pieces_of(const std::vector<Taker>& takers, const Catalog& catalog) {
  const SourceTensor& source = catalog.tensors[takers.front().transfer->source];
  if (source.shape.empty()) return {piece_of(takers, 0, 1)};
  std::set<std::int64_t> edges;
  for (const Taker& taker : takers) {
    const Box& box = taker.transfer->source_box;
    edges.insert(box.offset[0]);
    edges.insert(box.offset[0] + box.size[0]);
  }
  std::vector<SharedPiece> pieces;
  for (auto edge = edges.begin(); std::next(edge) != edges.end(); ++edge) {
    const std::int64_t end = *std::next(edge);
    const SharedPiece band = piece_of(takers, *edge, end);
    if (band.shares.empty()) continue;
    const std::uint64_t row_bytes = std::max<std::uint64_t>(
        1, bytes_to_read(source, band.box) / static_cast<std::uint64_t>(band.box.size[0]));
    std::int64_t rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(piece_bytes / row_bytes));
    if (rows > rows_in_a_cache_line) rows -= rows % rows_in_a_cache_line;
    for (std::int64_t begin = *edge; begin < end; begin += rows) {
      pieces.push_back(piece_of(takers, begin, std::min(end, begin + rows)));
    }
  }
  return pieces;
}

std::uint64_t bytes_to_read(const SharedPiece& piece, const Catalog& catalog) {
  return bytes_to_read(catalog.tensors[piece.source], piece.box) +
         (piece.scales < 0 ? 0 : bytes_to_read(scales_in(catalog, piece.scales), piece.scale_box));
}

/// Bytes that each rank handles in the round that is being filled.
struct Round {
  std::vector<std::uint64_t> read, sent, received;

  explicit Round(std::size_t ranks) : read(ranks), sent(ranks), received(ranks) {}
  void add(const SharedPiece& piece, const Catalog& catalog) {
    const auto reader = static_cast<std::size_t>(piece.reader);
    read[reader] += bytes_to_read(piece, catalog);
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
    return static_cast<std::uint64_t>(volume(box.size)) * bytes_of_elements(dtype);
  };
  return bytes(share.box, catalog.tensors[piece.source].dtype) +
         (piece.scales < 0 ? 0 : bytes(share.scale_box, scales_in(catalog, piece.scales).dtype));
}

Cooperation cooperate(const std::vector<std::vector<Transfer>>& transfers_of_ranks, const Catalog& catalog,
                      std::uint64_t round_bytes) {
  const std::size_t ranks = transfers_of_ranks.size();
  Cooperation cooperation;
  std::map<std::tuple<std::uint32_t, std::uint64_t, std::uint32_t, std::int64_t>, std::vector<Taker>> sources;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::vector<Transfer>& transfers = transfers_of_ranks[rank];
    cooperation.shared.emplace_back(transfers.size(), false);
    for (std::uint32_t t = 0; t < transfers.size(); ++t) {
      if (is_empty(transfers[t].source_box)) continue;
      const SourceTensor& source = catalog.tensors[transfers[t].source];
      sources[{source.file, source.begin, transfers[t].source, transfers[t].scales}].push_back(
          {static_cast<int>(rank), t, &transfers[t]});
    }
  }

  std::vector<std::uint64_t> read_by(ranks, 0);
  Round round(ranks);
  cooperation.round_begins = {0};
  for (const auto& [place, takers] : sources) {
    std::uint64_t apart = 0;
    for (const Taker& taker : takers) {
      apart += bytes_to_read(catalog.tensors[taker.transfer->source], taker.transfer->source_box);
      if (taker.transfer->scales >= 0) {
        apart += bytes_to_read(scales_in(catalog, taker.transfer->scales), taker.transfer->scale_box);
      }
    }
    std::vector<SharedPiece> pieces = pieces_of(takers, catalog);
    std::uint64_t together = 0;
    for (const SharedPiece& piece : pieces) together += bytes_to_read(piece, catalog);
    if (together >= apart) continue;

    for (const Taker& taker : takers) {
      cooperation.shared[static_cast<std::size_t>(taker.rank)][taker.index] = true;
    }
    for (SharedPiece& piece : pieces) {
      piece.reader =
          std::min_element(piece.shares.begin(), piece.shares.end(), [&](const auto& a, const auto& b) {
            return read_by[static_cast<std::size_t>(a.rank)] < read_by[static_cast<std::size_t>(b.rank)];
          })->rank;
      read_by[static_cast<std::size_t>(piece.reader)] += bytes_to_read(piece, catalog);
      Round with = round;
      with.add(piece, catalog);
      if (with.most() > round_bytes && cooperation.round_begins.back() < cooperation.pieces.size()) {
        cooperation.round_begins.push_back(cooperation.pieces.size());
        with = Round(ranks);
        with.add(piece, catalog);
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
