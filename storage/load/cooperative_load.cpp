#include "storage/load/cooperative_load.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "storage/boxes/placing.h"
#include "storage/boxes/scale_checks.h"
#include "storage/files/remote_calls.h"
#include "storage/load/load_rest.h"
#include "storage/load/parts_of_pieces.h"
#include "storage/no_memory.h"
#include "storage/seconds.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Bytes that a rank reads, sends or receives at a time, if the caller does not say.
constexpr std::uint64_t default_round_bytes = std::uint64_t{16} << 20;
constexpr std::size_t smallest_staging = 8192;

/// What is left of the caller's staging for reading.
LoadOptions for_reading(LoadOptions options) {
  if (options.staging_bytes > 0 && options.staging_bytes < smallest_staging) {
    throw Error(ErrorKind::argument, "staging_bytes is " + std::to_string(options.staging_bytes) +
                                         "; expected at least " + std::to_string(smallest_staging) +
                                         " where ranks read together");
  }
  options.staging_bytes /= 2;
  return options;
}

}  // namespace

CooperativeLoad::CooperativeLoad(const LoadPlan& plan, const Catalog& catalog, std::vector<TensorSpec> specs,
                                 const LoadOptions& options)
    : plan_(plan),
      catalog_(catalog),
      specs_(std::move(specs)),
      options_(for_reading(options)),
      trace_(options.trace, options.trace_process, options.check_for_interrupt),
      written_(plan, specs_.size()),
      devices_(plan, catalog, specs_, options_, written_),
      files_(catalog, direct_io_of(options_)),
      reading_(open_files_of(plan, catalog, files_, options)),
      companions_(plan, catalog, files_, threads_for(catalog.directory, options_.threads)),
      resources_(resources_for(options_, reading_, files_.count_direct() > 0, most_tasks_of(plan),
                               {devices_.block_bytes(), 0})) {
  expect_memory(plan, specs_);
  terms_.piece_bytes = TaskReader::task_bytes_of(resources_.buffer_bytes);
  terms_.round_bytes =
      options.staging_bytes == 0
          ? default_round_bytes
          : std::min<std::uint64_t>(default_round_bytes, options_.staging_bytes / buffers_of_rounds);
  for (std::size_t file = 0; file < catalog.files.size(); ++file) {
    if (reading_.costs[file] == costs_of_files_on_disk)
      terms_.files_on_disk.push_back(catalog.files[file].name);
  }
}

void CooperativeLoad::abandon() noexcept {
  if (!devices_are_open_) {
    readers_.clear();  // before the memory that they read into
    ring_.reset();
    memory_.reset();
    return;
  }
  devices_are_open_ = false;
  try {
    on_its_own_thread([&] {
      devices_.use_one();
      readers_.clear();
    });
  } catch (...) {  // the device is lost, or there is no thread to be had; what the load failed of is told
    readers_.clear();
  }
  devices_.abandon();
}

/// Works on a thread that may call the devices' run-time.
void CooperativeLoad::run(const std::function<void()>& work) {
  if (devices_.any()) {
    on_its_own_thread(work);
  } else {
    work();
  }
}

void CooperativeLoad::naming_what_is_written(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    throw written_.with_names(error, specs_);
  } catch (const std::bad_alloc&) {
    throw written_.with_names(no_memory(), specs_);
  }
}

void CooperativeLoad::begin(const std::vector<std::vector<Transfer>>& transfers_of_ranks,
                            const std::vector<CooperationTerms>& terms_of_ranks, int rank,
                            ReadingTogether how) {
  rank_ = rank;
  ranks_ = transfers_of_ranks.size();
  way_ = how.way;
  limits_ = agreed_limits(terms_of_ranks, catalog_, how.way);
  limits_.cached_files_apart = how.cached_files_apart;
  cooperation_ = cooperate(transfers_of_ranks, catalog_, limits_);
  bytes_in_all_ = 0;
  leave_node();
  if (!devices_are_open_) {
    devices_are_open_ = devices_.any();
    devices_.open();
  }
  left_ = Clock::now();
  if (way_ == HandingOver::by_shared_memory) {
    for (const SharedPiece& piece : cooperation_.pieces) {
      for (const SharedPiece::Share& share : piece.shares)
        if (share.rank == rank_) bytes_in_all_ += bytes_of_share(piece, share, catalog_);
    }
    return;
  }
  for (const SharedPiece& piece : cooperation_.pieces) {
    if (piece.reader == rank_) bytes_in_all_ += task_of(piece, catalog_, limits_.costs).bytes();
  }
  const TaskReader::Buffers buffers{resources_.buffers_per_thread, resources_.buffer_bytes,
                                    resources_.huge_pages, devices_.calls()};
  for (int t = 0; bytes_in_all_ > 0 && t < resources_.threads; ++t) {
    readers_.emplace_back().tasks =
        std::make_unique<TaskReader>(catalog_, files_, reading_.in_background, buffers);
  }
  std::size_t before = 0;
  for (std::size_t round = 0; round < rounds(); ++round) {
    std::size_t now = 0;
    for (const auto& bytes : {bytes_to(round), bytes_from(round)})
      now = std::accumulate(bytes.begin(), bytes.end(), now);
    most_on_their_way_ = std::max(most_on_their_way_, before + now);
    before = now;
  }
  left_ = Clock::now();
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
  naming_what_is_written([&] { read_pieces(round, outgoing); });
}

void CooperativeLoad::read_pieces(std::size_t round, std::byte* outgoing) {
  note_exchange(0);
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
  std::atomic<std::uint32_t> next_piece = 0;
  std::atomic<std::uint64_t> bytes_done = 0;
  const TaskLoop loop{[&](JoinedTasks& alone) {
                        const std::uint32_t p = next_piece++;
                        if (p >= pieces.size()) return false;
                        alone.tasks = {task_of(*pieces[p], catalog_, limits_.costs)};
                        alone.tasks.front().transfer = p;
                        return true;
                      },
                      [&](const StagedTask& staged) {
                        bytes_done += staged.task.bytes();
                        place_piece(*pieces[staged.task.transfer], staged, places[staged.task.transfer]);
                        return nullptr;
                      },
                      [] { return false; }};
  run([&] {
    for_each_index(std::min(readers_.size(), pieces.size()), resources_.threads, [&](std::size_t i) {
      devices_.use_one();
      Reader& reader = readers_[i];
      run_tasks(*reader.tasks, loop, reader.figures, trace_.is_wanted() ? &reader.events : nullptr);
    });
  });
  bytes_done_ += bytes_done;
  left_ = Clock::now();
}

void CooperativeLoad::place_piece(const SharedPiece& piece, const StagedTask& staged,
                                  const std::vector<std::byte*>& places) {
  const BoxInMemory read = staged.part();
  for (std::size_t s = 0; s < piece.shares.size(); ++s) {
    std::size_t bytes = 0;
    const BoxInMemory part = part_of_share(piece, piece.shares[s], read, catalog_, bytes);
    if (places[s] == nullptr) {
      place_part(piece.shares[s].transfer, part, bytes);
    } else {
      pack(piece, piece.shares[s], part, catalog_, places[s]);
    }
  }
}

/// Places a part of a transfer. When it returns, the memory of the part is free.
void CooperativeLoad::place_part(std::uint32_t transfer, BoxInMemory part, std::size_t bytes) {
  const Transfer& whole = plan_.transfers[transfer];
  part.global = companions_.global_of(whole);
  expect_meant_scales(whole, part, catalog_);
  const TensorSpec& spec = specs_[whole.destination];
  if (DevicePlacer* const device = devices_.of(spec)) {
    const DeviceEvent copied = device->submit(transfer, part, bytes, false);
    device->wait_for(copied, transfer);
    device->give_back(copied);
    return;
  }
  const std::int64_t elements = volume(part.box.size);
  written_.begin(whole.destination, elements);
  place_box(whole, catalog_.tensors[whole.source].dtype, part, spec);
  written_.end(whole.destination, elements);
}

/// What happened between two calls was the exchange.
void CooperativeLoad::note_exchange(std::uint64_t bytes) {
  if (trace_.is_wanted()) events_.push_back({"exchange", -1, bytes, left_, Clock::now()});
}

void CooperativeLoad::place(std::size_t round, const std::byte* incoming) {
  naming_what_is_written([&] { place_shares(round, incoming); });
}

void CooperativeLoad::place_shares(std::size_t round, const std::byte* incoming) {
  struct Arrived {
    const SharedPiece* piece;
    const SharedPiece::Share* share;
    const std::byte* bytes;
    std::uint64_t size;
  };
  std::vector<const std::byte*> next(ranks_);
  const std::vector<std::uint64_t> bytes = bytes_from(round);
  const std::uint64_t bytes_in_all = std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0});
  note_exchange(bytes_in_all);
  const Clock::time_point begin = Clock::now();
  for (std::size_t r = 0; r < ranks_; ++r) {
    next[r] = incoming;
    incoming += bytes[r];
  }
  bytes_received_ += bytes_in_all;
  std::vector<Arrived> arrived;
  for_each_share(round, [&](const SharedPiece& piece, std::size_t index, std::uint64_t size) {
    const SharedPiece::Share& share = piece.shares[index];
    if (share.rank != rank_) return;
    const std::byte*& place = next[static_cast<std::size_t>(piece.reader)];
    arrived.push_back({&piece, &share, place, size});
    place += size;
  });
  run([&] {
    for_each_index(arrived.size(), resources_.threads, [&](std::size_t i) {
      const auto& [piece, share, from, size] = arrived[i];
      place_part(share->transfer, packed_part(*piece, *share, from, catalog_), size);
    });
  });
  left_ = Clock::now();
  if (trace_.is_wanted()) events_.push_back({"decode", -1, bytes_in_all, begin, left_});
}

LoadPlan CooperativeLoad::rest() const {
  if (cooperation_.shared.empty()) return plan_;
  LoadPlan rest = plan_;
  rest.transfers.clear();
  const std::vector<bool>& shared = cooperation_.shared[static_cast<std::size_t>(rank_)];
  for (std::size_t t = 0; t < shared.size(); ++t) {
    if (!shared[t]) rest.transfers.push_back(plan_.transfers[t]);
  }
  return rest;
}

LoadReport CooperativeLoad::finish(const LoadOptions& options) {
  LoadOptions own = options_;
  own.staging_bytes *= 2;  // the rounds are over
  own.check_for_interrupt = options.check_for_interrupt;
  if (options.progress) {
    own.progress = [&](std::uint64_t done, std::uint64_t in_all) {
      options.progress(bytes_done_ + done, bytes_in_all_ + in_all);
    };
  }
  const double together_seconds = seconds_since(begin_);
  const LoadPlan rest = this->rest();
  LoadReport together = figures_of_rounds(rest);
  for (std::size_t i = 0; i < readers_.size() && trace_.is_wanted(); ++i) {
    trace_.add("together " + std::to_string(i), std::move(readers_[i].events));
  }
  if (trace_.is_wanted()) trace_.add("exchange", std::move(events_));
  naming_what_is_written([&] {
    run([&] {
      if (devices_are_open_) devices_.use_one();
      for (Reader& reader : readers_) {
        reader.tasks->close();
        if (reader.pinned) reader.pinned->close("");
      }
      readers_.clear();  // their memory, and what is taken of devices, is for the rest now
      if (devices_are_open_) devices_.finish();
      devices_are_open_ = false;
    });
  });

  LoadReport report = load_rest(rest, catalog_, specs_, own, trace_, written_);
  devices_.report(together);
  report.devices = std::max(report.devices, together.devices);
  report.peak_device_bytes = std::max(report.peak_device_bytes, together.peak_device_bytes);
  report.bytes_to_devices += together.bytes_to_devices;
  report.device_batches += together.device_batches;
  report.bytes_read += together.bytes_read;
  report.bytes_received = bytes_received_;
  report.read_requests += together.read_requests;
  report.boxes_with_gaps += together.boxes_with_gaps;
  report.boxes_in_pieces += together.boxes_in_pieces;
  report.peak_staging_bytes = std::max(report.peak_staging_bytes, together.peak_staging_bytes);
  report.files += together.files;
  report.files_direct += together.files_direct;
  report.files_io_uring += together.files_io_uring;
  report.threads = std::max(report.threads, together.threads);
  report.read_seconds += together.read_seconds;
  report.decode_seconds += together.decode_seconds;
  if (!cooperation_.pieces.empty()) report.together_seconds = together_seconds;
  report.total_seconds = seconds_since(begin_);
  return report;
}

/// The figures of what was read together; files that the rest needs too are left for it to count.
LoadReport CooperativeLoad::figures_of_rounds(const LoadPlan& rest) {
  LoadReport report;
  TaskFigures figures;
  bool had_ring = false;
  report.peak_staging_bytes = most_on_their_way_;
  for (const Reader& reader : readers_) {
    report.bytes_read += reader.tasks->bytes_read();
    report.read_requests += reader.tasks->requests();
    report.peak_staging_bytes += reader.tasks->staging_bytes();
    had_ring = had_ring || reader.tasks->has_ring();
    figures.add(reader.figures);
  }
  report.boxes_with_gaps = figures.boxes_with_gaps;
  report.boxes_in_pieces = figures.boxes_in_pieces;
  report.threads = static_cast<int>(readers_.size());
  report.read_seconds = seconds_of(figures.reading) / resources_.threads;
  report.decode_seconds = seconds_of(figures.decoding) / resources_.threads;

  std::set<std::uint32_t> of_the_rest;
  std::set<std::uint32_t> of_the_pieces;
  for (const Reader& reader : readers_) of_the_pieces.insert(reader.files.begin(), reader.files.end());
  for (const Transfer& transfer : rest.transfers) {
    if (is_empty(transfer.source_box)) continue;
    of_the_rest.insert(catalog_.tensors[transfer.source].file);
    if (transfer.scales >= 0)
      of_the_rest.insert(catalog_.tensors[static_cast<std::size_t>(transfer.scales)].file);
  }
  for (const SharedPiece& piece : cooperation_.pieces) {
    if (piece.reader != rank_ || way_ != HandingOver::in_rounds) continue;
    for (const std::int64_t t : {std::int64_t{piece.source}, piece.scales}) {
      if (t < 0) continue;
      of_the_pieces.insert(catalog_.tensors[static_cast<std::size_t>(t)].file);
    }
  }
  for (const std::uint32_t file : of_the_pieces) {
    if (of_the_rest.contains(file)) continue;
    ++report.files;
    report.files_direct += files_.is_direct(file);
    report.files_io_uring += had_ring && reading_.in_background[file];
  }
  return report;
}

}  // namespace shardwright
