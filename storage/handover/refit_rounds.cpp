#include "storage/handover/refit_rounds.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "planner/error.h"
#include "planner/save/export_wire.h"
#include "planner/wire/packed_texts.h"
#include "storage/write/export_words.h"

namespace shardwright {
namespace {

constexpr std::size_t largest_message = std::size_t{4} << 20;
constexpr std::size_t smallest_message = std::size_t{64} << 10;

std::string word_of(bool holds) { return holds ? "yes" : ""; }

/// So many texts. `who` is the rank, or ranks, that told them.
std::vector<std::string> unpack_some(const std::string& bytes, std::size_t count, const char* who) {
  std::vector<std::string> texts = unpack_texts(bytes);
  if (texts.size() != count)
    throw Error(ErrorKind::malformed,
                "what " + std::string(who) + " has told of a hand-over is cut short: expected " +
                    std::to_string(count) + " texts, found " + std::to_string(texts.size()) +
                    "; do all ranks run the same version of shardwright?");
  return texts;
}

}  // namespace

std::vector<std::string> told_by_all(const Job& job, const std::function<std::string()>& mine) {
  return unpack_texts(round_of(job, mine, [](const std::vector<std::string>& told) {
    return std::vector<std::string>(told.size(), pack_texts(told));
  }));
}

std::string ToldPlan::pack() const {
  std::string bytes(digest.begin(), digest.end());
  bytes.append(key.begin(), key.end());
  bytes.push_back(static_cast<char>(tells_values));
  for (const std::uint64_t one : {joined_in, number}) {
    for (std::size_t b = 0; b < sizeof(one); ++b) bytes.push_back(static_cast<char>(one >> (8 * b)));
  }
  return bytes;
}

ToldPlan ToldPlan::unpack(const std::string& bytes) {
  ToldPlan told;
  if (bytes.size() != told_plan_bytes)
    throw Error(ErrorKind::malformed, "what a rank has told of its plan is cut short: expected " +
                                          std::to_string(told_plan_bytes) + " bytes, found " +
                                          std::to_string(bytes.size()) +
                                          "; do all ranks run the same version of shardwright?");
  auto at = bytes.begin();
  const auto take = [&at](Hash& hash) {
    std::copy_n(at, hash.size(), hash.begin());
    at += std::ssize(hash);
  };
  take(told.digest);
  take(told.key);
  told.tells_values = *at++ != 0;
  for (std::uint64_t* const one : {&told.joined_in, &told.number}) {
    for (std::size_t b = 0; b < sizeof(*one); ++b)
      *one |= static_cast<std::uint64_t>(static_cast<unsigned char>(*at++)) << (8 * b);
  }
  return told;
}

AgreedPlan agreed_plan(const std::vector<std::string>& told) {
  std::vector<ToldPlan> plans;
  std::string digests;
  for (const std::string& one : told) {
    plans.push_back(ToldPlan::unpack(one));
    digests.append(plans.back().digest.begin(), plans.back().digest.end());
  }
  AgreedPlan agreed;
  agreed.key = hash_of(digests);
  agreed.is_held =
      std::all_of(plans.begin(), plans.end(), [&](const ToldPlan& one) { return one.key == agreed.key; });
  agreed.needs_values =
      std::any_of(plans.begin(), plans.end(), [](const ToldPlan& one) { return one.tells_values; });
  // A rank may have joined others since, of another group: memory holds for those who joined at one time.
  const std::uint64_t joined_in = plans.at(0).joined_in;
  agreed.have_joined = joined_in != 0 && std::all_of(plans.begin(), plans.end(), [&](const ToldPlan& one) {
                         return one.joined_in == joined_in;
                       });
  agreed.number = plans[0].number;
  agreed.name = "shardwright/refit/" + std::to_string(agreed.number);
  return agreed;
}

std::string ToldSide::pack() const {
  return pack_texts({word_of(is_trainer), word_of(is_engine), holdings, asked});
}

ToldSide ToldSide::unpack(const std::string& bytes) {
  std::vector<std::string> texts = unpack_some(bytes, 4, "a rank");
  return {!texts[0].empty(), !texts[1].empty(), std::move(texts[2]), std::move(texts[3])};
}

std::string AnsweredSide::pack() const { return pack_texts({share, tensors, std::to_string(message_bytes)}); }

AnsweredSide AnsweredSide::unpack(const std::string& bytes) {
  std::vector<std::string> texts = unpack_some(bytes, 3, "rank 0");
  AnsweredSide answered{std::move(texts[0]), std::move(texts[1])};
  const char* const end = texts[2].data() + texts[2].size();
  const auto [read, fault] = std::from_chars(texts[2].data(), end, answered.message_bytes);
  if (fault != std::errc() || read != end)
    throw Error(ErrorKind::malformed, "rank 0: expected the bytes of a message, found \"" + texts[2] + "\"");
  return answered;
}

std::string ToldNeeds::pack() const { return pack_texts({needs, node}); }

ToldNeeds ToldNeeds::unpack(const std::string& bytes) {
  std::vector<std::string> texts = unpack_some(bytes, 2, "a rank");
  return {std::move(texts[0]), std::move(texts[1])};
}

std::vector<std::string> answers_of_sides(const std::vector<std::string>& told, const ExportRequest& request,
                                          const RefitOptions& options) {
  std::vector<ToldSide> sides;
  std::vector<std::string> holdings;
  std::vector<std::vector<std::string>> asked;
  for (const std::string& one : told) {
    sides.push_back(ToldSide::unpack(one));
    asked.push_back(unpack_texts(sides.back().asked));
    if (sides.back().is_trainer) holdings.push_back(std::move(sides.back().holdings));
  }
  expect_asked_alike(asked);
  if (holdings.empty())
    throw Error(ErrorKind::argument,
                "nobody can supply the engine: expected a state dict on some rank, found none");
  PlannedExport planned = plan_export(holdings, request, {});
  if (planned.is_refused)
    throw Error(ErrorKind::mismatch,
                "the trainer's ranks do not know of each other's tensors: expected all ranks of "
                "its meshes among those of the process group");
  AnsweredSide common;
  common.tensors = decode_share(planned.shares.front()).tensors;
  const auto engines = static_cast<std::size_t>(
      std::count_if(sides.begin(), sides.end(), [](const ToldSide& one) { return one.is_engine; }));
  // A sender has a message for each of them in the making, in its half of the memory.
  const std::size_t streams = 2 * std::max<std::size_t>(1, engines);
  common.message_bytes = std::clamp(options.staging_bytes / streams, smallest_message, largest_message);
  std::vector<std::string> answers;
  std::size_t share = 0;
  for (const ToldSide& one : sides) {
    AnsweredSide answered = common;
    if (one.is_trainer) answered.share = std::move(planned.shares[share++]);
    answers.push_back(answered.pack());
  }
  return answers;
}

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

}  // namespace shardwright
