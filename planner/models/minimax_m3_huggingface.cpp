/// The layout "huggingface": the checkpoint's own names and shapes, decoded. Each expert's weights are
/// tensors of their own. The trainer may spell the names as the checkpoint does, or the text part as a VL
/// checkpoint ("language_model. model.") or a text-only one ("model.") would.

#include <set>
#include <string>
#include <string_view>

#include "planner/models/minimax_m3_layouts.h"

namespace shardwright {

void add_huggingface_rules(WeightMap& map) {
  // What names there are is the same for every layout: the HF side of the table of "automodel", which leaves
  // none out.
  WeightMap names;
  add_automodel_rules(names);
  constexpr std::string_view text = "language_model.";

  std::set<std::string> spellings;
  const auto add = [&](const NamePattern& hf, const std::string& native, bool known) {
    if (!spellings.insert(native).second) return;
    map.rules.push_back({hf, NamePattern(native)});
    map.rules.back().known = known;
  };
  for (const Rule& rule : names.rules) {
    if (rule.known) add(rule.hf, to_checkpoint_spelling(map.dialect, rule.hf.text()), true);
  }
  // These find sources; the place that a tensor of the checkpoint has is the one in its own spelling.
  for (const Rule& rule : names.rules) {
    add(rule.hf, rule.hf.text(), false);
    if (rule.hf.text().starts_with(text)) add(rule.hf, rule.hf.text().substr(text.size()), false);
  }
  // Last, as in a checkpoint that lacks "model." too this catches every name.
  for (const Rule& rule : names.rules) {
    if (!rule.known) add(rule.hf, to_checkpoint_spelling(map.dialect, rule.hf.text()), false);
  }
}

}  // namespace shardwright
