#include "storage/handover/hand_over.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/save/export_wire.h"
#include "storage/handover/encode_boxes.h"
#include "storage/handover/engine_memory.h"
#include "storage/handover/refit_steps.h"
#include "storage/jobs/packed_texts.h"
#include "storage/threads.h"
#include "storage/write/export_words.h"
#include "storage/write/made_tensors.h"

namespace shardwright {
namespace {

/// Bytes that are encoded at a time.
constexpr std::size_t task_bytes = std::size_t{1} << 20;

constexpr std::size_t largest_message = std::size_t{4} << 20;
constexpr std::size_t smallest_message = std::size_t{64} << 10;

std::string text_of(const Hash& hash) { return {hash.begin(), hash.end()}; }

std::string digest_of(const std::vector<EngineTensor>& tensors) {
  std::string text;
  const auto add = [&](std::string_view word) { text.append(word).push_back('\n'); };
  for (const EngineTensor& tensor : tensors) {
    add(tensor.name);
    add(name_of(tensor.dtype));
    add(to_string(tensor.shape));
    for (const EnginePart& part : tensor.parts) {
      add(part.hf_name);
      add(to_string(part.box));
      add(to_string(part.at));
      for (const int axis : part.axes) add(std::to_string(axis));
      add(to_string(part.steps));
      add(to_string(part.view));
    }
  }
  return tensors.empty() ? std::string() : text_of(hash_of(text));
}

/// What a rank tells rank 0 first.
struct Told {
  bool is_trainer = false;
  std::string holdings;  ///< see describe_export()
  std::string engine;    ///< digest; empty: it has nothing of an engine
  std::string key;       ///< of the plan that it holds
  std::string asked;     ///< words_of() its request

  std::string pack() const { return pack_texts({is_trainer ? "trainer" : "", holdings, engine, key, asked}); }
  static Told unpack(const std::string& bytes) {
    std::vector<std::string> texts = unpack_texts(bytes);
    if (texts.size() != 5)
      throw Error(ErrorKind::malformed, "what a rank has told of a hand-over is cut short");
    return {texts[0] == "trainer", std::move(texts[1]), std::move(texts[2]), std::move(texts[3]),
            std::move(texts[4])};
  }
};

/// What rank 0 answers.
struct Answered {
  std::string share;    ///< of a trainer's rank
  std::string tensors;  ///< of all of them
  Hash key{};
  bool is_unchanged = false;
  std::size_t message_bytes = 0;

  std::string pack() const {
    return pack_texts(
        {share, tensors, text_of(key), is_unchanged ? "unchanged" : "", std::to_string(message_bytes)});
  }
  static Answered unpack(const std::string& bytes) {
    std::vector<std::string> texts = unpack_texts(bytes);
    Answered answered;
    if (texts.size() != 5 || texts[2].size() != answered.key.size())
      throw Error(ErrorKind::malformed, "what rank 0 has told of a hand-over is cut short");
    std::copy(texts[2].begin(), texts[2].end(), answered.key.begin());
    std::from_chars(texts[4].data(), texts[4].data() + texts[4].size(), answered.message_bytes);
    answered.share = std::move(texts[0]);
    answered.tensors = std::move(texts[1]);
    answered.is_unchanged = texts[3] == "unchanged";
    return answered;
  }
};

std::vector<std::string> answers_of(const std::vector<std::string>& bytes, const ExportRequest& request,
                                    const RefitOptions& options) {
  std::vector<Told> told;
  std::vector<std::string> holdings;
  std::vector<std::vector<std::string>> asked;
  for (const std::string& one : bytes) {
    told.push_back(Told::unpack(one));
    asked.push_back(unpack_texts(told.back().asked));
    if (told.back().is_trainer) holdings.push_back(told.back().holdings);
  }
  expect_asked_alike(asked);
  if (holdings.empty())
    throw Error(ErrorKind::argument,
                "nobody can supply the engine: expected a state dict on some rank, found none");
  const PlannedExport planned = plan_export(holdings, request, {});
  if (planned.is_refused)
    throw Error(ErrorKind::mismatch,
                "the trainer's ranks do not know of each other's tensors: expected all ranks of "
                "its meshes among those of the process group");
  Answered common;
  std::string keys;
  for (const std::string& share : planned.shares) {
    const ExportShare of_rank = decode_share(share);
    common.tensors = of_rank.tensors;
    keys += of_rank.writes;
  }
  const auto engines = static_cast<std::size_t>(
      std::count_if(told.begin(), told.end(), [](const Told& one) { return !one.engine.empty(); }));
  // A sender has a message for each of them in the making, in its half of the memory.
  const std::size_t streams = 2 * std::max<std::size_t>(1, engines);
  common.message_bytes = std::clamp(options.staging_bytes / streams, smallest_message, largest_message);
  keys += told.front().asked + common.tensors + std::to_string(common.message_bytes);
  for (const Told& one : told) keys += (one.is_trainer ? "trainer" : "") + one.engine;
  common.key = hash_of(keys);
  common.is_unchanged =
      std::all_of(told.begin(), told.end(), [&](const Told& one) { return one.key == text_of(common.key); });
  std::vector<std::string> answers;
  std::size_t share = 0;
  for (const Told& one : told) {
    Answered answered = common;
    if (one.is_trainer) answered.share = planned.shares[share++];
    answers.push_back(answered.pack());
  }
  return answers;
}

/// What is told to each rank, of what each rank tells it: both in the order of the ranks.
std::vector<std::string> turned(const std::vector<std::string>& told) {
  std::vector<std::vector<std::string>> texts;
  for (const std::string& one : told) texts.push_back(unpack_texts(one));
  std::vector<std::string> answers;
  for (std::size_t to = 0; to < told.size(); ++to) {
    std::vector<std::string> answer(told.size());
    for (std::size_t from = 0; from < told.size(); ++from) {
      if (to < texts[from].size()) answer[from] = std::move(texts[from][to]);
    }
    answers.push_back(pack_texts(answer));
  }
  return answers;
}

/// A hand-over in the making: what the ranks have told each other, and what this one has to encode.
class Prepared {
 public:
  Prepared(const Job& job, const RefitSide& side, const ExportRequest& request, PlannedRefit& planned,
           const RefitOptions& options)
      : job_(job), side_(side), request_(request), planned_(planned), options_(options) {}

  /// Returns whether the plan was up to date.
  bool prepare() {
    const Answered answered = Answered::unpack(round_of(
        job_,
        [&] {
          Told told{side_.specs != nullptr, "", digest_of(side_.engine),
                    planned_.described == nullptr ? "" : text_of(planned_.key),
                    pack_texts(words_of(request_))};
          if (side_.specs != nullptr)
            told.holdings = describe_export(*side_.specs, *side_.state, request_, options_.devices);
          return told.pack();
        },
        [&](const std::vector<std::string>& told) { return answers_of(told, request_, options_); }));
    if (answered.is_unchanged) {
      share_ = answered.share;
      return true;
    }
    planned_ = {};
    const std::string needs = round_of(
        job_,
        [&] {
          begin_encoding(answered.share);
          expect_memory_for_each(side_.engine, side_.memory);
          planned_ = begin_plan(source_ != nullptr
                                    ? source_->described()
                                    : described_export(request_, decode_tensors(answered.tensors), {}),
                                side_.engine, answered.message_bytes);
          return planned_.transfers.empty() ? std::string() : encode_needs(needs_of(planned_.transfers));
        },
        [&](const std::vector<std::string>& told) {
          return std::vector<std::string>(told.size(), pack_texts(told));
        });
    const std::string received = round_of(
        job_,
        [&] {
          const std::vector<std::string> all = unpack_texts(needs);
          if (source_ == nullptr) return pack_texts(std::vector<std::string>(all.size()));
          return pack_texts(plan_sends(
              job_.rank, given_by(source_->work(), source_->parts(), source_->layout()), all, planned_));
        },
        turned);
    on_all_ranks(job_, [&] { plan_receives(unpack_texts(received), planned_); });
    planned_.key = answered.key;
    return false;
  }

  RefitOutcome run(const Transport& transport) {
    std::exception_ptr failure;  // told with the rest, for which the others wait
    try {
      if (source_ == nullptr) begin_encoding(share_);
    } catch (...) {
      failure = std::current_exception();
    }
    const Catalog& catalog = planned_.described->layout.catalog;
    RefitWork work{job_.rank,       planned_.plan,      catalog,      planned_.layers,
                   nullptr,         planned_.transfers, side_.memory, options_.staging_bytes,
                   options_.threads};
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

 private:
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
                                               PartsOfRank::written, task_bytes, writing);
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
    for (const ExportTask& task : whole_tasks) {
      const Transfer& transfer = source_->transfer_of(task);
      cut_task(task, transfer, catalog.tensors[transfer.source].dtype,
               task_bounds(*resources_, source_->layout(), specs[transfer.destination]),
               tasks[planned_.layers.of_tensor[transfer.source]]);
    }
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
  std::string share_;  ///< of an export, where the plan was up to date
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
