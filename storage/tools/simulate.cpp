#include "storage/tools/simulate.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "storage/boxes/box_reading.h"
#include "storage/count_progress.h"
#include "storage/seconds.h"
#include "storage/threads.h"
#include "storage/tools/simulate_save.h"

namespace shardwright {
namespace {

std::uint64_t bytes_in(const SourceTensor& tensor, const Shape& size) {
  return static_cast<std::uint64_t>(volume(size) * unit_bytes(tensor.dtype));
}

/// A tensor of the catalog, by index, and the view in which it is seen; empty: its own shape.
using Seen = std::pair<std::uint32_t, Shape>;

/// What is needed of each tensor of a catalog, in units of bytes: see byte_boxes.h.
using Needed = std::map<Seen, std::vector<Box>>;

void join_each(Needed& needed) {
  for (auto& [seen, boxes] : needed) boxes = union_of(std::move(boxes));
}

void add_all(Needed& sum, const Needed& part) {
  for (const auto& [seen, boxes] : part) {
    std::vector<Box>& all = sum[seen];
    all.insert(all.end(), boxes.begin(), boxes.end());
  }
}

std::uint64_t bytes_in(const Catalog& catalog, const Needed& needed) {
  std::uint64_t bytes = 0;
  for (const auto& [seen, boxes] : needed) {
    for (const Box& box : boxes) bytes += bytes_in(catalog.tensors[seen.first], box.size);
  }
  return bytes;
}

/// What the transfers to these destinations (by index) need.
Needed needed_by(const LoadPlan& plan, const Catalog& catalog, const std::vector<bool>& destinations) {
  Needed needed;
  for (const Transfer& transfer : plan.transfers) {
    if (!destinations[transfer.destination]) continue;
    needed[{transfer.source, transfer.source_view}].push_back(
        in_units(catalog.tensors[transfer.source].dtype, transfer.source_box));
    if (transfer.global >= 0) {
      const auto global = static_cast<std::uint32_t>(transfer.global);
      needed[{global, {}}] = {whole(catalog.tensors[global].shape)};
    }
    if (transfer.scales >= 0) {
      const auto scales = static_cast<std::uint32_t>(transfer.scales);
      Shape view;  // as the source's, where that is one
      if (!transfer.source_view.empty()) view = seen_scale_shape(transfer, catalog.tensors[scales]);
      needed[{scales, std::move(view)}].push_back(transfer.scale_box);
    }
  }
  join_each(needed);
  return needed;
}

/// Consecutive bytes of one file, or the first and last of the runs of one box.
struct Span {
  std::uint32_t file;
  std::uint64_t begin;
  std::uint64_t end;
  std::uint64_t runs;

  bool operator<(const Span& other) const {
    return std::tie(file, begin) < std::tie(other.file, other.begin);
  }
};

Span span_of(const Catalog& catalog, const Seen& seen, const Box& box) {
  const SourceTensor& tensor = catalog.tensors[seen.first];
  const Shape& shape = seen.second.empty() ? tensor.shape : seen.second;
  const BoxReading reading = reading_of(tensor.begin, in_units(tensor.dtype, shape),
                                        static_cast<std::uint64_t>(unit_bytes(tensor.dtype)), box);
  Span span{tensor.file, reading.begin, reading.begin + reading.run_bytes, 1};
  for (std::size_t d = 0; d < reading.run_counts.size(); ++d) {
    span.runs *= reading.run_counts[d];
    span.end += (reading.run_counts[d] - 1) * reading.run_strides[d];
  }
  return span;
}

/// How many longest ranges of consecutive bytes the boxes make up in the files.
std::uint64_t extents_of(const Catalog& catalog, const Needed& needed) {
  std::vector<Span> spans;
  for (const auto& [seen, boxes] : needed) {
    for (const Box& box : boxes) spans.push_back(span_of(catalog, seen, box));
  }
  std::sort(spans.begin(), spans.end());
  std::uint64_t extents = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const bool goes_on = i > 0 && spans[i - 1].file == spans[i].file && spans[i - 1].end == spans[i].begin;
    extents += spans[i].runs - (goes_on ? 1 : 0);
  }
  return extents;
}

/// Which of the ranks that hold the same part of a tensor writes it, for each tensor: the one that has least
/// to write so far, large tensors first, so that all write about equally much.
std::vector<std::int64_t> writing_copies(const TensorsOnMesh& mesh) {
  std::vector<std::size_t> order(mesh.tensors().size());
  std::iota(order.begin(), order.end(), 0);
  const auto bytes = [&](std::size_t t) {
    return static_cast<std::uint64_t>(volume(mesh.tensors()[t].shape) * bytes_of(mesh.tensors()[t].dtype));
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return bytes(a) > bytes(b); });
  // Experts and all others lie differently on the mesh, so that each kind is balanced by itself.
  std::map<std::pair<std::int64_t, bool>, std::vector<std::uint64_t>> written;
  std::vector<std::int64_t> writers(mesh.tensors().size());
  for (const std::size_t t : order) {
    std::vector<std::uint64_t>& loads = written[{mesh.stage_of_tensor(t), mesh.tensors()[t].stacked}];
    const std::size_t copies = std::min(static_cast<std::size_t>(mesh.copies(t)), order.size());
    loads.resize(std::max(loads.size(), copies));  // more copies than tensors: the others write nothing
    const auto least = std::min_element(loads.begin(), loads.begin() + static_cast<std::ptrdiff_t>(copies));
    *least += bytes(t);
    writers[t] = least - loads.begin();
  }
  return writers;
}

class Simulator {
 public:
  Simulator(const TensorsOnMesh& mesh, const Catalog& catalog, const WeightMap& map,
            const SimulateOptions& options)
      : mesh_(mesh),
        catalog_(catalog),
        map_(map),
        options_(options),
        costs_(catalog.files.size(), options.costs),
        writers_(writing_copies(mesh)) {}

  Simulation run() {
    const auto begin = Clock::now();
    const std::vector<std::int64_t> nodes = chosen_nodes();
    for (const std::int64_t node : nodes)
      expect_in_all(options_.progress, static_cast<std::uint64_t>(ranks_of(node).second));
    std::vector<std::vector<SimulatedRank>> ranks(nodes.size());
    simulation_.nodes.resize(nodes.size());
    for_each_index(nodes.size(), options_.threads,
                   [&](std::size_t i) { simulation_.nodes[i] = node(nodes[i], ranks[i]); });
    for (std::vector<SimulatedRank>& of_node : ranks)
      std::move(of_node.begin(), of_node.end(), std::back_inserter(simulation_.ranks));
    simulation_.world = mesh_.ranks();
    simulation_.stages = mesh_.stages();
    simulation_.native_tensors = std::ssize(mesh_.tensors());
    for (const NativeTensor& tensor : mesh_.tensors())
      simulation_.bytes_native += static_cast<std::uint64_t>(volume(tensor.shape) * bytes_of(tensor.dtype));
    for (const SourceTensor& tensor : catalog_.tensors)
      simulation_.bytes_checkpoint += bytes_in(tensor, tensor.shape);
    simulation_.bytes_distinct = bytes_in(catalog_, needed_);
    count_job();
    if (mesh_.ranks() <= most_ranks_of_save) {
      simulation_.save = simulate_save(mesh_, options_.threads);
      for (SimulatedRank& rank : simulation_.ranks)
        rank.bytes_saved = simulation_.save->bytes_of_rank[static_cast<std::size_t>(rank.rank)];
    }
    simulation_.seconds = seconds_since(begin);
    return std::move(simulation_);
  }

 private:
  std::vector<std::int64_t> chosen_nodes() const {
    const std::int64_t per_node = options_.ranks_per_node;
    const std::int64_t all = (mesh_.ranks() - 1) / per_node + 1;
    const std::int64_t sample = std::min(options_.sample, mesh_.ranks());
    const std::int64_t wanted = sample == 0 ? all : (sample - 1) / per_node + 1;
    constexpr std::int64_t most = std::int64_t{1} << 24;
    if (wanted * std::min(per_node, mesh_.ranks()) > most) {
      throw Error(ErrorKind::argument, "simulate: expected at most " + std::to_string(most) +
                                           " ranks, found a mesh of " + std::to_string(mesh_.ranks()) +
                                           "; give a sample");
    }
    std::vector<std::int64_t> nodes;
    for (std::int64_t i = 0; i < wanted;
         ++i)  // wanted <= 2^24, so that the rest of the division fits 64 bits
      nodes.push_back(i * (all / wanted) + i * (all % wanted) / wanted);
    return nodes;
  }

  /// The first rank of a node, and how many it has.
  std::pair<std::int64_t, std::int64_t> ranks_of(std::int64_t node) const {
    const std::int64_t first = node * options_.ranks_per_node;
    return {first, std::min(options_.ranks_per_node, mesh_.ranks() - first)};
  }

  SimulatedNode node(std::int64_t number, std::vector<SimulatedRank>& ranks) {
    SimulatedNode node;
    node.node = number;
    Needed needed;
    const auto [first, count] = ranks_of(number);
    for (std::int64_t rank = first; rank < first + count; ++rank) {
      ranks.push_back(simulated(rank, needed));
      count_done(options_.progress, 1);
      node.bytes_needed += ranks.back().bytes_needed;
      node.bytes_read += ranks.back().bytes_read;
      node.requests += ranks.back().requests;
    }
    join_each(needed);
    node.bytes_distinct = bytes_in(catalog_, needed);
    for (const auto& [seen, boxes] : needed) {
      for (const Box& box : boxes) read_together(seen, box, node);
    }
    const std::lock_guard lock(mutex_);
    for (const auto& [seen, boxes] : needed) {
      std::vector<Box>& all = needed_[seen];
      all.insert(all.end(), boxes.begin(), boxes.end());
      all = union_of(std::move(all));
    }
    return node;
  }

  /// What one rank that holds everything would read.
  void count_job() {
    const TensorsOnMesh whole(mesh_.tensors(), {}, DenseSharding::named);
    const std::vector<TensorSpec> specs = whole.specs_of_rank(0);
    const LoadPlan plan = plan_load(specs, catalog_, map_, options_.plan);
    const Needed needed = needed_by(plan, catalog_, std::vector<bool>(specs.size(), true));
    SimulatedNode job;
    for (const auto& [seen, boxes] : needed) {
      for (const Box& box : boxes) read_together(seen, box, job);
    }
    simulation_.bytes_needed_by_job = bytes_in(catalog_, needed);
    simulation_.bytes_read_by_job = job.bytes_read_together;
    simulation_.requests_of_job = job.requests_together;
  }

  /// The requests of a plan that moves this box as it is.
  void read_together(const Seen& seen, const Box& box, SimulatedNode& node) const {
    LoadPlan plan;
    plan.transfers.emplace_back();
    plan.transfers[0].source = seen.first;
    plan.transfers[0].source_view = seen.second;
    plan.transfers[0].source_box = box;
    plan.transfers[0].encoding.element = catalog_.tensors[seen.first].dtype;
    if (is_packed(plan.transfers[0].encoding.element)) {  // which the box counts in bytes
      plan.transfers[0].source_box.offset.back() *= 2;
      plan.transfers[0].source_box.size.back() *= 2;
    }
    for_each_task(plan, [&](const ReadTask& task) {
      node.bytes_read_together += task.weights.staged_bytes;
      node.requests_together += task.weights.requests;
    });
  }

  template <typename Visit>
  void for_each_task(const LoadPlan& plan, const Visit& visit) const {
    TaskCutter cutter(plan, catalog_, options_.buffer_bytes, costs_);
    for (ReadTask task; cutter.next(task);) visit(static_cast<const ReadTask&>(task));
  }

  SimulatedRank simulated(std::int64_t rank, Needed& needed_on_node) const {
    const double begin = processor_seconds();
    const std::vector<TensorSpec> specs = mesh_.specs_of_rank(rank);
    const LoadPlan plan = plan_load(specs, catalog_, map_, options_.plan);
    SimulatedRank result;
    count_reads(plan, result);
    result.planning_seconds = processor_seconds() - begin;
    result.rank = rank;
    result.stage = mesh_.stage_of_rank(rank);
    result.tensors = plan.tensors;
    result.bytes_needed = plan.bytes_needed;
    count_writes(specs, plan, result);
    const Needed needed = needed_by(plan, catalog_, std::vector<bool>(specs.size(), true));
    result.extents = extents_of(catalog_, needed);
    add_all(needed_on_node, needed);
    return result;
  }

  void count_reads(const LoadPlan& plan, SimulatedRank& result) const {
    std::map<std::uint32_t, std::uint64_t> bytes_by_file;
    for_each_task(plan, [&](const ReadTask& task) {
      const Transfer& transfer = plan.transfers[task.transfer];
      bytes_by_file[catalog_.tensors[transfer.source].file] += task.weights.staged_bytes;
      result.requests += task.weights.requests;
      if (transfer.scales < 0) return;
      const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(transfer.scales)];
      bytes_by_file[scales.file] += task.scales.staged_bytes;
      result.requests += task.scales.requests;
    });
    for (const auto& [file, bytes] : bytes_by_file) {
      result.files.push_back({file, bytes});
      result.bytes_read += bytes;
    }
  }

  void count_writes(const std::vector<TensorSpec>& specs, const LoadPlan& plan, SimulatedRank& result) const {
    const std::vector<std::size_t> tensors = mesh_.tensors_of_rank(result.rank);
    std::vector<bool> writes(specs.size());
    for (std::size_t s = 0; s < specs.size(); ++s) {
      const auto bytes = static_cast<std::uint64_t>(volume(specs[s].local_shape) * bytes_of(specs[s].dtype));
      writes[s] = writers_[tensors[s]] == mesh_.copy_of_rank(tensors[s], result.rank);
      result.bytes_held += bytes;
      if (writes[s]) result.bytes_saved += bytes;
    }
    result.bytes_exported = bytes_in(catalog_, needed_by(plan, catalog_, writes));
  }

  const TensorsOnMesh& mesh_;
  const Catalog& catalog_;
  const WeightMap& map_;
  const SimulateOptions& options_;
  const std::vector<ReadCosts> costs_;       // by file
  const std::vector<std::int64_t> writers_;  // by tensor
  std::mutex mutex_;                         // of needed_
  Needed needed_;                            // by any rank so far
  Simulation simulation_;
};

}  // namespace

Simulation simulate(const TensorsOnMesh& tensors, const Catalog& catalog, const WeightMap& map,
                    const SimulateOptions& options) {
  const auto check = [](const char* name, std::int64_t found, std::int64_t least) {
    if (found < least) {
      throw Error(ErrorKind::argument, std::string(name) + ": expected " + std::to_string(least) +
                                           " or more, found " + std::to_string(found));
    }
  };
  check("ranks_per_node", options.ranks_per_node, 1);
  check("sample", options.sample, 0);
  check("threads", options.threads, 0);
  check("buffer_bytes", static_cast<std::int64_t>(options.buffer_bytes), 4096);
  return Simulator(tensors, catalog, map, options).run();
}

}  // namespace shardwright
