#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "planner/save/saved_values.h"
#include "storage/handover/hand_over.h"

namespace shardwright {

// What the ranks of a hand-over tell each other before anything is sent. Step by step: whether all of them
// hold a plan for what they bring; if not, or if values have a say in it, what the trainer's ranks hold, and
// with it what each one encodes; what the engine's ranks need; what the trainer's ranks will send. Decoding
// throws Error(malformed) for bytes that are cut short.

/// What the ranks tell, in their order, on all of them.
std::vector<std::string> told_by_all(const Job& job, const std::function<std::string()>& mine);

/// What a rank tells at first.
struct ToldPlan {
  Hash digest = {};             ///< of all that it plans by
  Hash key = {};                ///< of the plan that it holds; zeros: it has none
  bool tells_values = false;    ///< PlannedRefit::tells_values
  std::uint64_t joined_in = 0;  ///< see PlannedRefit
  std::uint64_t number = 0;     ///< any but 0; that of rank 0 tells this hand-over from others

  std::string pack() const;
  static ToldPlan unpack(const std::string& bytes);
};

inline constexpr std::size_t told_plan_bytes =
    2 * sizeof(Hash) + sizeof(char) + 2 * sizeof(std::uint64_t);  ///< packed

/// What follows from that, the same on all ranks.
struct AgreedPlan {
  Hash key = {};              ///< of what the ranks bring now
  bool is_held = false;       ///< by all ranks: a plan of this key
  bool needs_values = false;  ///< some rank has to tell of them
  bool have_joined = false;   ///< all ranks, with each other
  std::uint64_t number = 0;   ///< of this hand-over
  std::string name;           ///< of it; see RefitWork::name
};

AgreedPlan agreed_plan(const std::vector<std::string>& told);

/// What a rank tells of what it brings.
struct ToldSide {
  bool is_trainer = false;
  bool is_engine = false;
  std::string holdings;  ///< of a trainer's rank; see describe_export()
  std::string asked;     ///< words_of() its request

  std::string pack() const;
  static ToldSide unpack(const std::string& bytes);
};

/// What rank 0 answers.
struct AnsweredSide {
  std::string share;    ///< of a trainer's rank; see plan_export()
  std::string tensors;  ///< of all of them; see encode_tensors()
  std::size_t message_bytes = 0;

  std::string pack() const;
  static AnsweredSide unpack(const std::string& bytes);
};

/// What a rank tells of what it gets.
struct ToldNeeds {
  std::string needs;  ///< see encode_needs(); empty: nothing
  std::string node;   ///< RefitOptions::node

  std::string pack() const;
  static ToldNeeds unpack(const std::string& bytes);
};

/// Throws as plan_export(), Error(argument) where nobody brings a trainer.
std::vector<std::string> answers_of_sides(const std::vector<std::string>& told, const ExportRequest& request,
                                          const RefitOptions& options);

/// What is told to each rank, of what each rank tells it: both in the order of the ranks.
std::vector<std::string> turned(const std::vector<std::string>& told);

}  // namespace shardwright
