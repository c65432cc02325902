#include "planner/save/refusals.h"

#include <algorithm>
#include <charconv>
#include <system_error>

#include "planner/error.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

// A refusal is this letter, how many bytes the descriptions take, ":", these as a RankState, and why.
constexpr char no_plan = 'n';

}  // namespace

void refuse_damaged() {
  throw Error(
      ErrorKind::malformed,
      "a message about a save plan has been cut short or is damaged; do all ranks run the same version?");
}

std::string refusal(const std::string& why, const std::vector<std::string>& descriptions) {
  RankState carrier;  // a message that holds descriptions
  carrier.values = descriptions;
  const std::string encoded = encode(carrier);
  return no_plan + std::to_string(encoded.size()) + ":" + encoded + why;
}

std::vector<std::string> refusals(const std::vector<RankState>& states, const std::vector<std::size_t>& lost,
                                  const ValuesByHash& known) {
  std::vector<std::int64_t> ranks;
  for (const std::size_t s : lost) ranks.push_back(states[s].rank);
  const std::string why = "the ranks do not hold one state: " + ranks_text(ranks) +
                          (ranks.size() == 1 ? " differs" : " differ") + " from the first of its mesh:";
  std::vector<std::string> answers(states.size(), refusal(why, {}));
  for (const std::size_t s : lost) {
    std::vector<std::string> of_its_meshes;
    for (const auto& [hash, values] : known) {
      const auto& on_mesh = values->mesh_ranks;
      if (std::find(on_mesh.begin(), on_mesh.end(), states[s].rank) != on_mesh.end())
        of_its_meshes.push_back(encode(*values));
    }
    answers[s] = refusal(why, of_its_meshes);
  }
  return answers;
}

bool is_refusal(std::string_view answer) { return answer.starts_with(no_plan); }

void throw_refusal(std::string_view answer, const RankState& mine) {
  if (!is_refusal(answer)) refuse_damaged();
  const std::string_view rest = answer.substr(1);
  std::size_t size = 0;
  const char* const end = rest.data() + rest.size();
  const auto [colon, fault] = std::from_chars(rest.data(), end, size);
  if (fault != std::errc() || colon == end || *colon != ':') refuse_damaged();
  if (size > static_cast<std::size_t>(end - colon - 1)) refuse_damaged();
  const std::string_view descriptions(colon + 1, size);
  std::string text(colon + 1 + size, end);
  for (const std::string& bytes : decode_state(descriptions).values) {
    const SavedValues expected = decode_values(bytes);
    for (const std::string& own : mine.values) {
      const SavedValues found = decode_values(own);
      if (!found.has_mesh() || found.mesh_ranks != expected.mesh_ranks) continue;
      text = in_lines(std::move(text),
                      differences(expected, "rank " + std::to_string(expected.mesh_ranks.front()), found,
                                  "rank " + std::to_string(mine.rank)));
    }
  }
  throw Error(ErrorKind::mismatch, text);
}

}  // namespace shardwright
