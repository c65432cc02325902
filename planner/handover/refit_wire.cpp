#include <google/protobuf/repeated_field.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/handover/refit_plan.h"
#include "planner/wire/protobuf_message.h"
#include "planner/wire/refit.pb.h"

namespace shardwright {
namespace {

constexpr unsigned refit_wire_version = 1;
constexpr std::uint64_t most_dimensions = 64;

void check(bool holds, const char* why) {
  if (!holds) throw Error(ErrorKind::malformed, std::string("this plan of a hand-over is damaged: ") + why);
}

std::uint64_t zigzag(std::int64_t value) {
  return (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63);
}

std::int64_t from_zigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

/// Fills a message; the shapes of tensors are not known here, so that a dimension is whole nowhere.
class BoxWriter {
 public:
  explicit BoxWriter(wire::StoredBoxes& to) : to_(to) {}

  void add(const ExportedBox& part) {
    to_.add_boxes(zigzag(std::int64_t{part.tensor} - last_));
    last_ = part.tensor;
    const std::size_t dimensions = part.box.size.size();
    to_.add_boxes(number_of(part.view) * most_dimensions + dimensions);
    if (last_box_.size.size() != dimensions) last_box_ = {Shape(dimensions, 0), Shape(dimensions, 0)};
    for (std::size_t d = 0; d < dimensions; ++d) {
      to_.add_boxes(zigzag(part.box.size[d] - last_box_.size[d]));
      to_.add_boxes(zigzag(part.box.offset[d] - last_box_.offset[d]));
    }
    last_box_ = part.box;
    to_.set_count(to_.count() + 1);
  }

 private:
  std::uint64_t number_of(const Shape& view) {
    if (view.empty()) return 0;
    const auto [found, is_new] = views_.emplace(view, views_.size() + 1);
    if (is_new) {
      to_.add_view_dimensions(static_cast<std::uint32_t>(view.size()));
      for (const std::int64_t size : view) to_.add_view_extent(size);
    }
    return found->second;
  }

  wire::StoredBoxes& to_;
  std::int64_t last_ = 0;
  Box last_box_;
  std::map<Shape, std::uint64_t> views_;
};

/// A number and its distance to the next one, whatever they are.
std::int64_t plus(std::int64_t a, std::int64_t distance) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(distance));
}

std::vector<Shape> views_of(const wire::StoredBoxes& message) {
  std::vector<Shape> views(1);
  int extent = 0;
  for (const std::uint32_t dimensions : message.view_dimensions()) {
    check(dimensions > 0 && dimensions < most_dimensions &&
              std::cmp_less_equal(dimensions, message.view_extent_size() - extent),
          "a view is cut short");
    Shape& view = views.emplace_back();
    for (std::uint32_t d = 0; d < dimensions; ++d) view.push_back(message.view_extent(extent++));
  }
  return views;
}

std::vector<ExportedBox> boxes_from(const wire::StoredBoxes& message, const Catalog& catalog) {
  const std::vector<Shape> views = views_of(message);
  check(message.count() <= static_cast<std::uint64_t>(message.boxes_size()), "boxes are missing");
  std::vector<ExportedBox> boxes;
  boxes.reserve(message.count());
  int at = 0;
  const auto next = [&] {
    check(at < message.boxes_size(), "a box is cut short");
    return message.boxes(at++);
  };
  std::int64_t tensor = 0;
  Box last;
  for (std::uint64_t b = 0; b < message.count(); ++b) {
    const std::int64_t step = from_zigzag(next());
    check(step >= -tensor && step < std::ssize(catalog.tensors) - tensor,
          "a box is of a tensor that there is not");
    tensor += step;
    const SourceTensor& source = catalog.tensors[static_cast<std::size_t>(tensor)];
    const std::uint64_t head = next();
    const std::uint64_t view = head / most_dimensions;
    check(view < views.size(), "a box is of a view that there is not");
    const Shape own = in_units(source.dtype, source.shape);
    check(view == 0 || view_with(views[view], own).has_value(), "a view is none of its tensor");
    const Shape& shape = view == 0 ? own : views[view];
    check(head % most_dimensions == shape.size(), "a box has other dimensions than its tensor");
    if (last.size.size() != shape.size()) last = {Shape(shape.size(), 0), Shape(shape.size(), 0)};
    ExportedBox& part = boxes.emplace_back(ExportedBox{static_cast<std::uint32_t>(tensor), views[view], {}});
    for (std::size_t d = 0; d < shape.size(); ++d) {
      last.size[d] = plus(last.size[d], from_zigzag(next()));
      last.offset[d] = plus(last.offset[d], from_zigzag(next()));
    }
    part.box = last;
    check(lies_inside(part.box, shape) && !is_empty(part.box), "a box does not lie inside of its tensor");
  }
  check(at == message.boxes_size(), "there are more numbers than boxes");
  return boxes;
}

void fill(wire::HandedList& to, const HandedList& list) {
  to.set_rank(list.rank);
  BoxWriter writer(*to.mutable_boxes());
  std::uint32_t last = 0;
  for (const HandedBox& handed : list.boxes) {
    writer.add(handed.part);
    to.mutable_boxes()->add_need(static_cast<std::int32_t>(handed.need - last));
    last = handed.need;
  }
}

HandedList list_from(const wire::HandedList& message, const Catalog& catalog) {
  HandedList list{message.rank(), {}};
  std::vector<ExportedBox> boxes = boxes_from(message.boxes(), catalog);
  check(std::cmp_equal(message.boxes().need_size(), boxes.size()), "boxes have no needs");
  std::uint32_t need = 0;
  for (std::size_t b = 0; b < boxes.size(); ++b) {
    need += static_cast<std::uint32_t>(message.boxes().need(static_cast<int>(b)));
    list.boxes.push_back({need, std::move(boxes[b])});
  }
  return list;
}

template <typename Lists>
std::vector<HandedList> lists_from(const Lists& messages, const Catalog& catalog) {
  std::vector<HandedList> lists;
  for (const wire::HandedList& message : messages) {
    check(message.rank() >= 0 && (lists.empty() || lists.back().rank < message.rank()),
          "its ranks do not rise");
    lists.push_back(list_from(message, catalog));
  }
  return lists;
}

}  // namespace

std::string encode_needs(const std::vector<ExportedBox>& needs) {
  wire::StoredBoxes message;
  BoxWriter writer(message);
  for (const ExportedBox& need : needs) writer.add(need);
  message.set_version(refit_wire_version);
  message.set_end(true);
  return bytes_of_message(message);
}

std::vector<ExportedBox> decode_needs(std::string_view bytes, const Catalog& catalog) {
  const auto message =
      parse_message<wire::StoredBoxes>(bytes, refit_wire_version, "what a rank of an engine needs");
  check(message.end(), "it has been cut short");
  return boxes_from(message, catalog);
}

std::string encode(const RefitPlan& plan) {
  wire::RefitPlan message;
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
  RefitPlan plan;
  plan.sends = lists_from(message.sends(), catalog);
  plan.receives = lists_from(message.receives(), catalog);
  plan.message_bytes = message.message_bytes();
  return plan;
}

}  // namespace shardwright
