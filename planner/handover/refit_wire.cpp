#include <google/protobuf/repeated_field.h>

#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/view.h"
#include "planner/handover/refit_plan.h"
#include "planner/load/transfers.h"
#include "planner/wire/protobuf_message.h"
#include "planner/wire/refit.pb.h"

namespace shardwright {
namespace {

constexpr unsigned refit_wire_version = 2;
constexpr std::uint64_t most_dimensions = 64;

/// Of a view: a tensor's few, each of a few factors. A box copies them, and one byte may ask for a box.
constexpr std::uint64_t most_factors = 16;

[[noreturn]] void throw_damaged(const std::string& why) {
  throw Error(ErrorKind::malformed, "what a rank told of a hand-over is damaged: " + why +
                                        "; do all ranks run the same version of shardwright?");
}

void check(bool holds, const char* why) {
  if (!holds) throw_damaged(why);
}

std::uint64_t zigzag(std::int64_t value) {
  return (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63);
}

std::int64_t from_zigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

/// A step, as numbers side by side.
using Step = std::vector<std::uint64_t>;

struct HashOfStep {
  std::size_t operator()(const Step& step) const {
    std::uint64_t hash = step.size();
    for (const std::uint64_t number : step) hash = (hash ^ number) * 0x9fb21c651e98df25U + (hash >> 29);
    return hash;
  }
};

/// Numbers the steps of all lists of a message.
class StepWriter {
 public:
  explicit StepWriter(wire::BoxSteps& to) : to_(to) {}

  /// Adds the numbers of the steps from box to box.
  void add(const std::vector<HandedBox>& list, google::protobuf::RepeatedField<std::uint32_t>& numbers) {
    numbers.Reserve(static_cast<int>(list.size()));
    std::int64_t tensor = 0;
    std::int64_t need = 0;
    for (const HandedBox& handed : list) {
      const Box& box = handed.part.box;
      step_.assign({zigzag(handed.part.tensor - tensor), zigzag(handed.need - need),
                    number_of(handed.part.view) * most_dimensions + box.size.size()});
      for (std::size_t d = 0; d < box.size.size(); ++d) {
        step_.push_back(static_cast<std::uint64_t>(box.size[d]));
        step_.push_back(static_cast<std::uint64_t>(box.offset[d]));
      }
      tensor = handed.part.tensor;
      need = handed.need;
      numbers.Add(number_of(step_));
    }
  }

 private:
  std::uint32_t number_of(const Step& step) {
    const auto [found, is_new] = steps_.emplace(step, to_.count());
    if (is_new) {
      to_.mutable_numbers()->Add(step.begin(), step.end());
      to_.set_count(to_.count() + 1);
    }
    return found->second;
  }

  std::uint64_t number_of(const Shape& view) {
    if (view.empty()) return 0;
    const auto [found, is_new] = views_.emplace(view, views_.size() + 1);
    if (is_new) {
      to_.add_view_dimensions(static_cast<std::uint32_t>(view.size()));
      for (const std::int64_t size : view) to_.add_view_extent(size);
    }
    return found->second;
  }

  wire::BoxSteps& to_;
  Step step_;
  std::unordered_map<Step, std::uint32_t, HashOfStep> steps_;
  std::map<Shape, std::uint64_t> views_;
};

std::vector<Shape> views_of(const wire::BoxSteps& message) {
  std::vector<Shape> views(1);
  int extent = 0;
  for (const std::uint32_t dimensions : message.view_dimensions()) {
    check(dimensions > 0 && dimensions <= most_factors &&
              std::cmp_less_equal(dimensions, message.view_extent_size() - extent),
          "a view is cut short");
    Shape& view = views.emplace_back();
    for (std::uint32_t d = 0; d < dimensions; ++d) view.push_back(message.view_extent(extent++));
  }
  check(extent == message.view_extent_size(), "there are more sizes than views have");
  return views;
}

/// The steps of a message, and the boxes that they lead to.
class StepReader {
 public:
  StepReader(const wire::BoxSteps& message, const Catalog& catalog)
      : catalog_(catalog), views_(views_of(message)) {
    check(message.count() <= static_cast<std::uint32_t>(message.numbers_size()), "steps are missing");
    int at = 0;
    const auto next = [&] {
      check(at < message.numbers_size(), "a step is cut short");
      return message.numbers(at++);
    };
    steps_.reserve(message.count());
    for (std::uint32_t n = 0; n < message.count(); ++n) {
      Read& step = steps_.emplace_back();
      step.tensor = from_zigzag(next());
      step.need = from_zigzag(next());
      const std::uint64_t head = next();
      step.view = head / most_dimensions;
      check(step.view < views_.size(), "a box is of a view that there is not");
      for (std::uint64_t d = 0; d < head % most_dimensions; ++d) {
        step.box.size.push_back(static_cast<std::int64_t>(next()));
        step.box.offset.push_back(static_cast<std::int64_t>(next()));
      }
    }
    check(at == message.numbers_size(), "there are more numbers than steps");
  }

  /// Boxes of tensors that `is_wanted` is false of are left empty.
  template <typename IsWanted>
  std::vector<HandedBox> list_of(const google::protobuf::RepeatedField<std::uint32_t>& numbers,
                                 const IsWanted& is_wanted) {
    std::vector<HandedBox> list;
    list.reserve(static_cast<std::size_t>(numbers.size()));
    std::int64_t tensor = 0;
    std::int64_t need = 0;
    for (const std::uint32_t number : numbers) {
      check(number < steps_.size(), "a box is reached by a step that there is not");
      const Read& step = steps_[number];
      check(step.tensor >= -tensor && step.tensor < std::ssize(catalog_.tensors) - tensor,
            "a box is of a tensor that there is not");
      check(step.need >= -need && step.need <= std::int64_t{UINT32_MAX} - need,
            "a box is of a need that there cannot be");
      tensor += step.tensor;
      need += step.need;
      HandedBox& handed = list.emplace_back();
      handed.need = static_cast<std::uint32_t>(need);
      handed.part.tensor = static_cast<std::uint32_t>(tensor);
      if (!is_wanted(handed.part.tensor)) continue;
      expect_inside(step, catalog_.tensors[handed.part.tensor]);
      handed.part.view = views_[step.view];
      handed.part.box = step.box;
    }
    return list;
  }

 private:
  struct Read {
    std::int64_t tensor = 0;
    std::int64_t need = 0;
    std::uint64_t view = 0;
    Box box;
  };

  void expect_inside(const Read& step, const SourceTensor& tensor) const {
    const Shape own = in_units(tensor.dtype, tensor.shape);
    const Shape& view = views_[step.view];
    if (step.view != 0 && !view_with(view, own))
      throw_damaged(stored_name(tensor) + ": " + to_string(view) + " is no view of its shape " +
                    to_string(own));
    const Shape& shape = step.view == 0 ? own : view;
    if (!lies_inside(step.box, shape) || is_empty(step.box))
      throw_damaged(stored_name(tensor) + ": expected a box of " + to_string(shape) + ", found one of " +
                    to_string(step.box.size) + " at " + to_string(step.box.offset));
  }

  const Catalog& catalog_;
  std::vector<Shape> views_;
  std::vector<Read> steps_;
};

std::vector<HandedBox> as_handed(const std::vector<ExportedBox>& needs) {
  std::vector<HandedBox> boxes;
  boxes.reserve(needs.size());
  for (const ExportedBox& need : needs) boxes.push_back({0, need});
  return boxes;
}

template <typename Lists>
std::vector<HandedList> lists_from(const Lists& messages, StepReader& steps) {
  std::vector<HandedList> lists;
  for (const wire::HandedList& message : messages) {
    check(message.rank() >= 0 && (lists.empty() || lists.back().rank < message.rank()),
          "its ranks do not rise");
    lists.push_back({message.rank(), steps.list_of(message.boxes(), [](std::uint32_t) { return true; })});
  }
  return lists;
}

}  // namespace

std::string encode_needs(const std::vector<ExportedBox>& needs) {
  wire::EngineNeeds message;
  StepWriter steps(*message.mutable_steps());
  steps.add(as_handed(needs), *message.mutable_boxes());
  message.set_version(refit_wire_version);
  message.set_end(true);
  return bytes_of_message(message);
}

std::vector<ExportedBox> decode_needs(std::string_view bytes, const Catalog& catalog,
                                      const GivenBoxes* given) {
  const auto message =
      parse_message<wire::EngineNeeds>(bytes, refit_wire_version, "what a rank of an engine needs");
  check(message.end(), "it has been cut short");
  StepReader steps(message.steps(), catalog);
  std::vector<ExportedBox> needs;
  needs.reserve(static_cast<std::size_t>(message.boxes_size()));
  const auto is_wanted = [&](std::uint32_t tensor) {
    return given == nullptr || !given->of_tensor[tensor].empty();
  };
  for (HandedBox& box : steps.list_of(message.boxes(), is_wanted)) needs.push_back(std::move(box.part));
  return needs;
}

std::string encode(const RefitPlan& plan) {
  wire::RefitPlan message;
  StepWriter steps(*message.mutable_steps());
  const auto fill = [&](wire::HandedList& to, const HandedList& list) {
    to.set_rank(list.rank);
    steps.add(list.boxes, *to.mutable_boxes());
  };
  for (const HandedList& list : plan.sends) fill(*message.add_sends(), list);
  for (const HandedList& list : plan.receives) fill(*message.add_receives(), list);
  message.set_message_bytes(plan.message_bytes);
  message.set_version(refit_wire_version);
  message.set_end(true);
  return bytes_of_message(message);
}

RefitPlan decode_refit_plan(std::string_view bytes, const Catalog& catalog) {
  const auto message = parse_message<wire::RefitPlan>(bytes, refit_wire_version, "a plan of a hand-over");
  check(message.end(), "it has been cut short");
  StepReader steps(message.steps(), catalog);
  return {lists_from(message.sends(), steps), lists_from(message.receives(), steps), message.message_bytes()};
}

}  // namespace shardwright
