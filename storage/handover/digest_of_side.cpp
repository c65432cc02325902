#include "storage/handover/digest_of_side.h"

#include <cstdint>
#include <string_view>

#include "planner/save/saved_values.h"
#include "storage/handover/engine_memory.h"
#include "storage/handover/hand_over.h"
#include "storage/write/export_words.h"

namespace shardwright {
namespace {

/// What is described, as bytes that are others for another description.
class Described {
 public:
  void add(std::int64_t number) { text_.append(reinterpret_cast<const char*>(&number), sizeof(number)); }

  void add(std::string_view text) {
    add(std::ssize(text));
    text_ += text;
  }

  void add(const Shape& shape) {
    add(std::ssize(shape));
    for (const std::int64_t size : shape) add(size);
  }

  void add(const Box& box) {
    add(box.offset);
    add(box.size);
  }

  std::string digest() const {
    const Hash hash = hash_of(text_);
    return {hash.begin(), hash.end()};
  }

 private:
  std::string text_;
};

void add(const EngineTensor& tensor, Described& described) {
  described.add(tensor.name);
  described.add(static_cast<std::int64_t>(tensor.dtype));
  described.add(tensor.shape);
  described.add(std::ssize(tensor.parts));
  for (const EnginePart& part : tensor.parts) {
    described.add(part.hf_name);
    described.add(part.box);
    described.add(part.at);
    described.add(Shape(part.axes.begin(), part.axes.end()));
    described.add(part.steps);
    described.add(part.view);
  }
}

void add(const TensorSpec& spec, Described& described) {
  described.add(spec.fqn);
  described.add(static_cast<std::int64_t>(spec.dtype));
  described.add(static_cast<std::int64_t>(spec.device));
  described.add(spec.device_index);
  described.add(spec.data == nullptr ? 0 : 1);
  described.add(spec.global_shape);
  described.add(spec.local_shape);
  described.add(spec.local_strides);
  described.add(std::ssize(spec.boxes));
  for (const LocalBox& box : spec.boxes) {
    described.add(box.global);
    described.add(box.local_offset);
  }
}

void add(const RankState& state, Described& described) {
  described.add(state.rank);
  described.add(std::ssize(state.holdings));
  for (const RankState::Holding& holding : state.holdings) {
    described.add(std::string_view(holding.values.data(), holding.values.size()));
    described.add(std::ssize(holding.packed));
    for (const std::uint64_t number : holding.packed) described.add(static_cast<std::int64_t>(number));
  }
}

}  // namespace

std::string checked_digest_of_side(const RefitSide& side, const ExportRequest& request) {
  expect_memory_for_each(side.engine, side.memory);
  Described described;
  for (const std::string& word : words_of(request)) described.add(word);
  described.add(side.specs == nullptr ? 0 : std::ssize(*side.specs) + 1);
  if (side.specs != nullptr) {
    for (const TensorSpec& spec : *side.specs) add(spec, described);
    add(*side.state, described);
  }
  described.add(std::ssize(side.engine));
  for (const EngineTensor& tensor : side.engine) add(tensor, described);
  return described.digest();
}

}  // namespace shardwright
