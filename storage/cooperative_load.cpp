#include "storage/cooperative_load.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "storage/box_reading.h"
#include "storage/placing.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

std::uint64_t element_bytes_of(const SourceTensor& tensor) {
  return static_cast<std::uint64_t>(bytes_of(tensor.dtype));
}

BoxReading reading_of_box(const SourceTensor& tensor, const Box& box) {
  return reading_of(tensor.begin, tensor.shape, element_bytes_of(tensor), box);
}

/// Where a box inside another lies in memory that holds the other with these strides (elements).
const std::byte* address_in(const std::byte* memory, const Box& outer, const Shape& strides, const Box& inner,
                            std::uint64_t element_bytes) {
  std::int64_t elements = 0;
  for (std::size_t d = 0; d < inner.offset.size(); ++d) {
    elements += (inner.offset[d] - outer.offset[d]) * strides[d];
  }
  return memory + elements * static_cast<std::int64_t>(element_bytes);
}

/// Copies a box with those strides (elements, 1 for the last dimension) to contiguous memory; returns its
/// end.
std::byte* pack(const std::byte* from, const Shape& size, const Shape& strides, std::size_t dimension,
                std::uint64_t element_bytes, std::byte* to) {
  if (dimension + 1 >= size.size()) {
    const std::uint64_t bytes = (size.empty() ? 1 : static_cast<std::uint64_t>(size.back())) * element_bytes;
    std::memcpy(to, from, bytes);
    return to + bytes;
  }
  for (std::int64_t i = 0; i < size[dimension]; ++i) {
    to = pack(from + i * strides[dimension] * static_cast<std::int64_t>(element_bytes), size, strides,
              dimension + 1, element_bytes, to);
  }
  return to;
}

}  // namespace

CooperativeLoad::CooperativeLoad(const LoadPlan& plan, const Catalog& catalog, std::vector<TensorSpec> specs,
                                 const std::vector<std::vector<Transfer>>& transfers_of_ranks, int rank,
                                 int threads, std::uint64_t round_bytes)
    : plan_(plan),
      catalog_(catalog),
      specs_(std::move(specs)),
      rank_(rank),
      threads_(threads),
      ranks_(transfers_of_ranks.size()),
      cooperation_(cooperate(transfers_of_ranks, catalog, round_bytes)),
      files_(catalog, DirectIo::never) {
  expect_cpu_memory(plan, specs_, "a cooperative load (load without it)");
}

/// Calls visit(piece, index of the share, bytes) for each share of the round that travels.
template <typename Visit>
void CooperativeLoad::for_each_share(std::size_t round, const Visit& visit) const {
  for (std::size_t p = cooperation_.round_begins[round]; p < cooperation_.round_begins[round + 1]; ++p) {
    const SharedPiece& piece = cooperation_.pieces[p];
    for (std::size_t s = 0; s < piece.shares.size(); ++s) {
      if (piece.shares[s].rank == piece.reader) continue;
      visit(piece, s, bytes_of_share(piece, piece.shares[s], catalog_));
    }
  }
}

std::vector<std::uint64_t> CooperativeLoad::bytes_to(std::size_t round) const {
  std::vector<std::uint64_t> bytes(ranks_, 0);
  for_each_share(round, [&](const SharedPiece& piece, std::size_t share, std::uint64_t size) {
    if (piece.reader == rank_) bytes[static_cast<std::size_t>(piece.shares[share].rank)] += size;
  });
  return bytes;
}

std::vector<std::uint64_t> CooperativeLoad::bytes_from(std::size_t round) const {
  std::vector<std::uint64_t> bytes(ranks_, 0);
  for_each_share(round, [&](const SharedPiece& piece, std::size_t share, std::uint64_t size) {
    if (piece.shares[share].rank == rank_) bytes[static_cast<std::size_t>(piece.reader)] += size;
  });
  return bytes;
}

void CooperativeLoad::read(std::size_t round, std::byte* outgoing) {
  std::vector<std::byte*> next(ranks_);  // of each rank's bytes
  const std::vector<std::uint64_t> bytes = bytes_to(round);
  for (std::size_t r = 0; r < ranks_; ++r) {
    next[r] = outgoing;
    outgoing += bytes[r];
  }
  std::vector<const SharedPiece*> pieces;
  std::vector<std::vector<std::byte*>> places;  // of each piece's shares; null for this rank's own
  for (std::size_t p = cooperation_.round_begins[round]; p < cooperation_.round_begins[round + 1]; ++p) {
    const SharedPiece& piece = cooperation_.pieces[p];
    if (piece.reader != rank_) continue;
    pieces.push_back(&piece);
    places.emplace_back();
    for (const SharedPiece::Share& share : piece.shares) {
      std::byte*& place = next[static_cast<std::size_t>(share.rank)];
      places.back().push_back(share.rank == rank_ ? nullptr : place);
      if (share.rank != rank_) place += bytes_of_share(piece, share, catalog_);
    }
  }
  for_each_index(pieces.size(), threads_, [&](std::size_t i) { read_piece(*pieces[i], places[i]); });
}

void CooperativeLoad::read_box(const SourceTensor& tensor, const BoxReading& reading, std::byte* to) {
  if (reading.in_one_request) {
    files_.read(tensor, reading.begin, to, reading.staged_bytes);
  } else {
    for_each_run(reading, [&](std::uint64_t begin) {
      files_.read(tensor, begin, to, reading.run_bytes);
      to += reading.run_bytes;
    });
  }
  const std::lock_guard lock(mutex_);
  bytes_read_ += reading.staged_bytes;
  requests_ += reading.requests;
}

void CooperativeLoad::read_piece(const SharedPiece& piece, const std::vector<std::byte*>& places) {
  std::unique_ptr<Staging> staging;
  {
    const std::lock_guard lock(mutex_);
    if (!unused_staging_.empty()) {
      staging = std::move(unused_staging_.back());
      unused_staging_.pop_back();
    }
  }
  if (!staging) staging = std::make_unique<Staging>();

  const SourceTensor& source = catalog_.tensors[piece.source];
  const BoxReading weights = reading_of_box(source, piece.box);
  const SourceTensor* scale_tensor = nullptr;
  BoxReading scales;
  if (piece.scales >= 0) {
    scale_tensor = &catalog_.tensors[static_cast<std::size_t>(piece.scales)];
    scales = reading_of_box(*scale_tensor, piece.scale_box);
  }
  std::byte* const elements = staging->room_for(weights.staged_bytes + scales.staged_bytes);
  std::byte* const staged_scales = elements + weights.staged_bytes;
  read_box(source, weights, elements);
  if (scale_tensor != nullptr) read_box(*scale_tensor, scales, staged_scales);

  for (std::size_t s = 0; s < piece.shares.size(); ++s) {
    const SharedPiece::Share& share = piece.shares[s];
    const std::byte* first =
        address_in(elements, piece.box, weights.staged_strides, share.box, element_bytes_of(source));
    const std::byte* first_scale = nullptr;
    if (scale_tensor != nullptr) {
      first_scale = address_in(staged_scales, piece.scale_box, scales.staged_strides, share.scale_box,
                               element_bytes_of(*scale_tensor));
    }
    if (places[s] == nullptr) {
      const Transfer& transfer = plan_.transfers[share.transfer];
      const BoxInMemory part{share.box, first, weights.staged_strides, first_scale, scales.staged_strides};
      place_box(transfer, source.dtype, part, specs_[transfer.destination]);
      continue;
    }
    std::byte* const end =
        pack(first, share.box.size, weights.staged_strides, 0, element_bytes_of(source), places[s]);
    if (scale_tensor != nullptr) {
      pack(first_scale, share.scale_box.size, scales.staged_strides, 0, element_bytes_of(*scale_tensor), end);
    }
  }
  const std::lock_guard lock(mutex_);
  unused_staging_.push_back(std::move(staging));
}

void CooperativeLoad::place(std::size_t round, const std::byte* incoming) {
  struct Arrived {
    const SharedPiece* piece;
    const SharedPiece::Share* share;
    const std::byte* bytes;
  };
  std::vector<const std::byte*> next(ranks_);
  const std::vector<std::uint64_t> bytes = bytes_from(round);
  for (std::size_t r = 0; r < ranks_; ++r) {
    next[r] = incoming;
    incoming += bytes[r];
    bytes_received_ += bytes[r];
  }
  std::vector<Arrived> arrived;
  for_each_share(round, [&](const SharedPiece& piece, std::size_t index, std::uint64_t size) {
    const SharedPiece::Share& share = piece.shares[index];
    if (share.rank != rank_) return;
    const std::byte*& place = next[static_cast<std::size_t>(piece.reader)];
    arrived.push_back({&piece, &share, place});
    place += size;
  });
  for_each_index(arrived.size(), threads_, [&](std::size_t i) {
    const auto& [piece, share, from] = arrived[i];
    const Transfer& transfer = plan_.transfers[share->transfer];
    const SourceTensor& source = catalog_.tensors[piece->source];
    BoxInMemory part{share->box, from, contiguous_strides(share->box.size), nullptr, {}};
    if (piece->scales >= 0) {
      part.scales = from + volume(share->box.size) * bytes_of(source.dtype);
      part.scale_strides = contiguous_strides(share->scale_box.size);
    }
    place_box(transfer, source.dtype, part, specs_[transfer.destination]);
  });
}

LoadPlan CooperativeLoad::rest() const {
  LoadPlan rest = plan_;
  rest.transfers.clear();
  const std::vector<bool>& shared = cooperation_.shared[static_cast<std::size_t>(rank_)];
  for (std::size_t t = 0; t < shared.size(); ++t) {
    if (!shared[t]) rest.transfers.push_back(plan_.transfers[t]);
  }
  return rest;
}

}  // namespace shardwright
