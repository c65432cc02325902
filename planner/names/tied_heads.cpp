#include "planner/names/tied_heads.h"

#include <algorithm>
#include <iterator>
#include <map>

namespace shardwright {
namespace {

constexpr std::string_view head_ending = "lm_head.weight";
constexpr std::string_view embedding_endings[] = {"embed_tokens.weight", "tok_embeddings.weight",
                                                  "word_embeddings.weight", "embeddings.weight"};

bool is_embedding(std::string_view fqn) {
  return std::any_of(std::begin(embedding_endings), std::end(embedding_endings),
                     [&](std::string_view ending) { return fqn.ends_with(ending); });
}

}  // namespace

bool is_same_memory(const TensorSpec& a, const TensorSpec& b) {
  if (a.device == DeviceKind::meta || b.device == DeviceKind::meta) return false;
  if (a.dtype != b.dtype || a.global_shape != b.global_shape || a.local_shape != b.local_shape ||
      a.boxes != b.boxes)
    return false;
  if (volume(a.local_shape) == 0) return true;
  return a.data != nullptr && a.data == b.data && a.device_name == b.device_name &&
         a.local_strides == b.local_strides;
}

bool may_be_tied(std::string_view fqn) { return fqn.ends_with(head_ending) || is_embedding(fqn); }

std::vector<std::string> tied_heads(std::span<const TensorSpec> specs) {
  std::map<std::string_view, std::vector<const TensorSpec*>> parts;  // a ShardedTensor may have several
  for (const TensorSpec& spec : specs) {
    if (may_be_tied(spec.fqn)) parts[spec.fqn].push_back(&spec);
  }
  std::vector<std::string> tied;
  for (const auto& [head, of_head] : parts) {
    if (!head.ends_with(head_ending)) continue;
    const bool is_tied = std::any_of(parts.begin(), parts.end(), [&, &mine = of_head](const auto& other) {
      const auto& [name, of_other] = other;
      return is_embedding(name) &&
             std::equal(mine.begin(), mine.end(), of_other.begin(), of_other.end(),
                        [](const TensorSpec* a, const TensorSpec* b) { return is_same_memory(*a, *b); });
    });
    if (is_tied) tied.emplace_back(head);
  }
  return tied;
}

std::vector<std::string> take_tied_heads(std::vector<TensorSpec>& specs) {
  std::vector<std::string> tied = tied_heads(specs);
  std::erase_if(specs, [&](const TensorSpec& spec) {
    return std::find(tied.begin(), tied.end(), spec.fqn) != tied.end();
  });
  return tied;
}

}  // namespace shardwright
