#include "storage/handover/hand_over.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/save/export_wire.h"
#include "planner/wire/packed_texts.h"
#include "storage/files/random_number.h"
#include "storage/handover/digest_of_side.h"
#include "storage/handover/encode_boxes.h"
#include "storage/handover/refit_rounds.h"
#include "storage/handover/refit_steps.h"
#include "storage/threads.h"
#include "storage/write/export_words.h"
#include "storage/write/made_tensors.h"

namespace shardwright {
namespace {

/// Bytes that are encoded at a time, such as the codes and scales of 512 x 512 values: few enough that a
/// core's second-level cache has them when they are copied.
constexpr std::size_t task_bytes = (std::size_t{1} << 18) + (std::size_t{1} << 14);

/// No transfer has more: it is cut for the threads that encode it, once they are known.
constexpr std::size_t whole_transfers = std::numeric_limits<std::size_t>::max();

/// Whether a rank has told of values, which may be others in the next hand-over.
bool has_values(const std::string& told) {
  const ExportHoldings holdings = decode_holdings(told);
  return !holdings.columns.empty() || !holdings.numbers.empty();
}

/// A hand-over in the making: what the ranks have told each other, and what this one has to encode.
class Prepared {
 public:
  Prepared(const Job& job, const RefitSide& side, const ExportRequest& request, PlannedRefit& planned,
           const RefitOptions& options)
      : job_(job), side_(side), request_(request), planned_(planned), options_(options) {}

  /// Returns whether the plan was up to date.
  bool prepare() {
    if (planned_.joined_by != ::getpid()) part();
    const auto mine = [&] {
      return ToldPlan{digest(), planned_.key, planned_.tells_values, planned_.joined_in,
                      std::max<std::uint64_t>(1, random_number())}
          .pack();
    };
    AgreedPlan known =
        agreed_plan(job_.gather ? job_.gather(told_plan_bytes, mine) : told_by_all(job_, mine));
    name_ = std::move(known.name);
    const bool was_held = plan(known);
    if (!was_held || !known.have_joined) {
      part();  // before others are made
      planned_.joined = join_node(job_, planned_.plan, planned_.described->layout.catalog, planned_.layers,
                                  planned_.nodes, options_.staging_bytes);
      planned_.joined_in = known.number;
      planned_.joined_by = ::getpid();
    }
    return was_held;
  }

  RefitOutcome run(const Transport& transport) {
    NodeMessages* const node = planned_.joined ? planned_.joined->messages.get() : nullptr;
    if (node != nullptr) node->begin(options_.timeout);
    RefitOutcome outcome = run_over(transport, node);
    if (planned_.joined) outcome.not_shared = planned_.joined->refused;
    if (outcome.has_ended_early || outcome.failure) part();
    return outcome;
  }

 private:
  /// From the memory that is shared with others.
  void part() {
    planned_.joined.reset();
    planned_.joined_in = 0;
  }

  /// Returns whether the plan was up to date.
  bool plan(const AgreedPlan& known) {
    if (known.is_held && !known.needs_values) return true;
    bool tells_values = false;
    AnsweredSide answered = AnsweredSide::unpack(round_of(
        job_,
        [&] {
          ToldSide told{side_.specs != nullptr, !side_.engine.empty(), "", pack_texts(words_of(request_))};
          if (side_.specs != nullptr) {
            told.holdings = describe_export(*side_.specs, *side_.state, request_, options_.devices);
            tells_values = has_values(told.holdings);
          }
          return told.pack();
        },
        [&](const std::vector<std::string>& told) { return answers_of_sides(told, request_, options_); }));
    if (known.is_held) {
      planned_.share = std::move(answered.share);
      return true;
    }
    planned_ = {};
    const std::vector<std::string> told = told_by_all(job_, [&] {
      begin_encoding(answered.share);
      planned_ =
          begin_plan(source_ != nullptr ? source_->described()
                                        : described_export(request_, decode_tensors(answered.tensors), {}),
                     side_.engine, answered.message_bytes);
      return ToldNeeds{
          planned_.transfers.empty() ? std::string() : encode_needs(needs_of(planned_.transfers)),
          options_.node}
          .pack();
    });
    std::vector<std::string> needs;
    for (const std::string& one : told) {
      ToldNeeds of_rank = ToldNeeds::unpack(one);
      needs.push_back(std::move(of_rank.needs));
      planned_.nodes.push_back(std::move(of_rank.node));
    }
    const std::string received = round_of(
        job_,
        [&] {
          if (source_ == nullptr) return pack_texts(std::vector<std::string>(needs.size()));
          return pack_texts(plan_sends(
              job_.rank, given_by(source_->work(), source_->parts(), source_->layout()), needs, planned_));
        },
        turned);
    on_all_ranks(job_, [&] { plan_receives(unpack_texts(received), planned_); });
    planned_.key = known.key;
    planned_.share = std::move(answered.share);
    planned_.tells_values = tells_values;
    return false;
  }

  RefitOutcome run_over(const Transport& transport, NodeMessages* node) {
    std::exception_ptr failure;  // told with the rest, for which the others wait
    try {
      if (source_ == nullptr) begin_encoding(planned_.share);
    } catch (...) {
      failure = std::current_exception();
    }
    const Catalog& catalog = planned_.described->layout.catalog;
    RefitWork work{job_.rank,
                   planned_.plan,
                   catalog,
                   planned_.layers,
                   nullptr,
                   planned_.transfers,
                   side_.memory,
                   options_.staging_bytes,
                   options_.threads,
                   name_,
                   options_.check_for_interrupt,
                   node};
    if (failure) work.encode = [&](std::uint32_t, const auto&) { std::rethrow_exception(failure); };
    if (source_ == nullptr) return run_refit(work, transport);
    DevicesInUse devices(tensors_on_devices(source_->parts().specs), options_.devices);
    std::uint64_t bytes = 0;
    const std::vector<std::vector<ExportTask>> tasks = tasks_of_layers(devices, bytes);
    const std::vector<std::uint32_t> small = given_whole(source_->parts(), source_->layout());
    work.encode = [&](std::uint32_t layer, const std::function<void(const GivenBytes&)>& take) {
      for (const std::uint32_t tensor : small) {
        if (planned_.layers.of_tensor[tensor] == layer) give_whole(tensor, take);
      }
      if (tasks[layer].empty()) return;
      encode_tasks(source_->parts(), source_->layout(), source_->work(), tasks[layer], source_->templates(),
                   devices, *resources_, nullptr, [&](std::size_t, const EncodedBox& encoded) {
                     const DType dtype = catalog.tensors[encoded.tensor].dtype;
                     take({exported_box(encoded, catalog), encoded.bytes,
                           strides_in_units(dtype, strides_of(encoded, dtype))});
                   });
    };
    RefitOutcome outcome;
    devices.run([&] { outcome = run_refit(work, transport); });
    return outcome;
  }

  /// Of all that this rank plans by.
  Hash digest() const {
    return hash_of(
        pack_texts({side_.digest.empty() ? checked_digest_of_side(side_, request_) : side_.digest,
                    std::to_string(job_.rank), std::to_string(options_.staging_bytes), options_.node}));
  }

  void begin_encoding(const std::string& share) {
    if (side_.specs == nullptr) return;
    ExportWriting writing;
    writing.threads = options_.threads;
    writing.staging_bytes =
        tensors_on_devices(*side_.specs).empty()
            ? task_bytes * static_cast<std::size_t>(options_.threads > 0 ? options_.threads : processors())
            : 0;
    writing.devices = options_.devices;
    source_ = std::make_unique<EncodingSource>(share, *side_.specs, *side_.state, request_,
                                               PartsOfRank::written, whole_transfers, writing);
  }

  std::vector<std::vector<ExportTask>> tasks_of_layers(const DevicesInUse& devices, std::uint64_t& bytes) {
    const Catalog& catalog = planned_.described->layout.catalog;
    const std::vector<ExportTask>& whole_tasks = source_->work().tasks;
    for (const ExportTask& task : whole_tasks)
      bytes += static_cast<std::uint64_t>(
          bytes_of_box(catalog.tensors[source_->transfer_of(task).source].dtype, task.box));
    const std::vector<TensorSpec>& specs = source_->parts().specs;
    resources_ = resources_for(source_->options(), specs, devices, bytes);
    std::vector<std::vector<ExportTask>> tasks(planned_.layers.names.size());
    for (const ExportTask& task : whole_tasks)
      cut_for_threads(*source_, *resources_, task,
                      tasks[planned_.layers.of_tensor[source_->transfer_of(task).source]]);
    return tasks;
  }

  void give_whole(std::uint32_t tensor, const std::function<void(const GivenBytes&)>& take) const {
    const ExportLayout& layout = source_->layout();
    const SourceTensor& stored = layout.catalog.tensors[tensor];
    const auto made = std::find_if(layout.made.begin(), layout.made.end(),
                                   [&](const Made& one) { return one.tensor == tensor; });
    const std::vector<std::byte> bytes = made == layout.made.end()
                                             ? source_->templates()->bytes_of(stored.name)
                                             : bytes_of_made(*made, layout, source_->parts().numbers);
    const Shape shape = in_units(stored.dtype, stored.shape);
    take({{tensor, {}, whole(shape)}, bytes.data(), contiguous_strides(shape)});
  }

  const Job& job_;
  const RefitSide& side_;
  const ExportRequest& request_;
  PlannedRefit& planned_;
  const RefitOptions& options_;
  std::string name_;  ///< of this hand-over
  std::unique_ptr<EncodingSource> source_;
  std::optional<EncodingResources> resources_;
};

}  // namespace

bool plan_refit_together(const Job& job, const RefitSide& side, const ExportRequest& request,
                         PlannedRefit& planned, const RefitOptions& options) {
  return Prepared(job, side, request, planned, options).prepare();
}

RefitOutcome hand_over(const Job& job, const RefitSide& side, const ExportRequest& request,
                       PlannedRefit& planned, const Transport& transport, const RefitOptions& options) {
  Prepared prepared(job, side, request, planned, options);
  prepared.prepare();
  return prepared.run(transport);
}

}  // namespace shardwright
