#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "planner/save/save_message.h"

namespace shardwright {
namespace {

constexpr std::size_t most_name_bytes =
    4096;  // so that names that share all but a byte cannot fill the memory
constexpr std::uint64_t most_split_factor = std::uint64_t{1} << 20;

/// Numbers things in the order of their first appearance.
template <typename Thing>
class Numbering {
 public:
  std::uint32_t number_of(const Thing& thing) {
    const auto [entry, is_new] = numbers_.emplace(thing, static_cast<std::uint32_t>(things.size()));
    if (is_new) things.push_back(thing);
    return entry->second;
  }
  std::vector<Thing> things;

 private:
  std::map<Thing, std::uint32_t> numbers_;
};

std::uint64_t code_of(const Placement& placement) {
  return static_cast<std::uint64_t>(placement.split_factor) << 8 |
         static_cast<std::uint64_t>(placement.dimension) << 2 | static_cast<std::uint64_t>(placement.kind);
}

Placement placement_from(std::uint64_t code) {
  const Placement placement{static_cast<Placement::Kind>(code & 3), static_cast<int>(code >> 2 & 63),
                            static_cast<std::int64_t>(code >> 8)};
  check(placement.kind <= Placement::Kind::strided_shard && code >> 8 >= 1 && code >> 8 <= most_split_factor,
        "a placement that there is not");
  return placement;
}

/// Bytes of a tensor of this shape, or a refusal if 63 bits cannot count them.
void check_size(const Shape& shape, std::uint64_t element_bytes) {
  check(shape.size() < most_dimensions, "a tensor of too many dimensions");
  auto bytes = static_cast<std::int64_t>(std::max<std::uint64_t>(element_bytes, 1));
  for (const std::int64_t size : shape) {
    check(size >= 0, "a negative size");
    check(!__builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes), "a tensor of 2^63 bytes");
  }
}

void encode_names(const SavedValues& values, wire::SavedValues& message) {
  std::string_view before;
  const bool has_paths = std::any_of(values.values.begin(), values.values.end(),
                                     [](const SavedValue& value) { return !value.path.empty(); });
  for (const SavedValue& value : values.values) {
    const std::string& name = value.fqn;
    if (name.size() > most_name_bytes)
      throw Error(ErrorKind::argument, name + ": expected a name of at most 4,096 bytes");
    const auto shared = std::mismatch(name.begin(), name.end(), before.begin(), before.end()).first;
    message.add_name_shared(static_cast<std::uint32_t>(shared - name.begin()));
    message.add_name_rest(std::string(shared, name.end()));
    before = name;
    if (!has_paths) continue;
    message.add_path_length(static_cast<std::uint32_t>(value.path.size()));
    for (const PathKey& key : value.path)
      message.add_path_key(key.text.size() << 1 | (key.is_number ? 1 : 0));
  }
}

void decode_names(const wire::SavedValues& message, SavedValues& values) {
  check(message.name_shared_size() == message.name_rest_size(), "names without their beginnings");
  check(message.path_length_size() == 0 || message.path_length_size() == message.name_rest_size(),
        "paths of other values");
  values.values.resize(static_cast<std::size_t>(message.name_rest_size()));
  std::string_view before;
  int next_key = 0;
  for (int i = 0; i < message.name_rest_size(); ++i) {
    SavedValue& value = values.values[static_cast<std::size_t>(i)];
    check(message.name_shared(i) <= before.size() &&
              message.name_shared(i) + message.name_rest(i).size() <= most_name_bytes,
          "a name that begins with more than there is");
    value.fqn = std::string(before.substr(0, message.name_shared(i))) + message.name_rest(i);
    before = value.fqn;
    if (message.path_length_size() == 0 || message.path_length(i) == 0) continue;
    check(message.path_length(i) <= static_cast<std::uint32_t>(message.path_key_size() - next_key),
          "a path without its keys");
    std::uint64_t at = 0;
    for (std::uint32_t k = 0; k < message.path_length(i); ++k) {
      const std::uint64_t code = message.path_key(next_key++);
      check(at <= before.size() && code >> 1 <= before.size() - at &&
                (k == 0 || before[static_cast<std::size_t>(at) - 1] == '.'),
            "a path that is not its name");
      value.path.push_back({std::string(before.substr(at, code >> 1)), (code & 1) != 0});
      at += (code >> 1) + 1;
    }
    check(at == before.size() + 1, "a path that is not its name");
  }
  check(next_key == message.path_key_size(), "keys of no path");
}

wire::SavedValues message_of(const SavedValues& values) {
  wire::SavedValues message;
  encode_names(values, message);
  using Facts = std::tuple<std::string, std::string, std::uint32_t, std::uint32_t>;
  Numbering<Facts> properties;
  Numbering<Shape> shapes;
  Numbering<std::vector<std::uint64_t>> placements;
  for (const SavedValue& value : values.values) {
    const TensorProperties& p = value.properties;
    message.add_kind(static_cast<std::uint32_t>(value.kind));
    message.add_properties_number(properties.number_of({p.dtype, p.layout, p.element_bytes, p.flags}));
    message.add_shape_number(shapes.number_of(value.shape));
    if (!values.has_mesh()) continue;
    std::vector<std::uint64_t> codes;
    for (const Placement& placement : value.placements) codes.push_back(code_of(placement));
    message.add_placement_number(placements.number_of(codes));
  }
  for (const auto& [dtype, layout, element_bytes, flags] : properties.things) {
    message.add_dtype(dtype);
    message.add_layout(layout);
    message.add_element_bytes(element_bytes);
    message.add_flags(flags);
  }
  for (const Shape& shape : shapes.things) {
    message.add_dimensions(static_cast<std::uint32_t>(shape.size()));
    message.mutable_extent()->Add(shape.begin(), shape.end());
  }
  for (const auto& codes : placements.things)
    message.mutable_placement_code()->Add(codes.begin(), codes.end());
  message.mutable_mesh_shape()->Add(values.mesh_shape.begin(), values.mesh_shape.end());
  std::int64_t expected = 0;
  for (const std::int64_t rank : values.mesh_ranks) {
    message.add_mesh_rank(rank - expected);
    expected = rank + 1;
  }
  return message;
}

void decode_mesh(const wire::SavedValues& message, SavedValues& values) {
  values.mesh_shape.assign(message.mesh_shape().begin(), message.mesh_shape().end());
  std::int64_t places = 1;
  for (const std::int64_t size : values.mesh_shape) {
    check(size >= 1 && !__builtin_mul_overflow(places, size, &places), "a mesh of no size");
  }
  if (message.mesh_rank_size() == 0 && values.mesh_shape.empty()) return;
  check(places == message.mesh_rank_size() && values.mesh_shape.size() < most_dimensions,
        "a mesh that is not as large as its shape");
  std::int64_t expected = 0;
  std::set<std::int64_t> seen;
  for (const std::int64_t distance : message.mesh_rank()) {
    check(distance > -most_ranks && distance < most_ranks, "a rank that there is not");
    const std::int64_t rank = expected + distance;
    check(rank >= 0 && rank < most_ranks && seen.insert(rank).second,
          "a rank that there is not, or is twice");
    values.mesh_ranks.push_back(rank);
    expected = rank + 1;
  }
}

std::vector<Shape> decode_shapes(const wire::SavedValues& message) {
  std::vector<Shape> shapes;
  auto size = message.extent().begin();
  for (const std::uint32_t rank : message.dimensions()) {
    check(rank <= message.extent().end() - size, "a shape without its sizes");
    shapes.emplace_back(size, size + rank);
    size += rank;
  }
  check(size == message.extent().end(), "sizes of no shape");
  return shapes;
}

SavedValues values_from(const wire::SavedValues& message) {
  SavedValues values;
  decode_names(message, values);
  decode_mesh(message, values);
  const std::vector<Shape> shapes = decode_shapes(message);
  const int count = message.name_rest_size();
  const std::size_t mesh_rank = values.mesh_shape.size();
  check(message.kind_size() == count && message.properties_number_size() == count &&
            message.shape_number_size() == count &&
            message.placement_number_size() == (values.has_mesh() ? count : 0),
        "values without their facts");
  check(message.dtype_size() == message.layout_size() && message.dtype_size() == message.flags_size() &&
            message.dtype_size() == message.element_bytes_size(),
        "properties without their facts");
  for (int i = 0; i < count; ++i) {
    SavedValue& value = values.values[static_cast<std::size_t>(i)];
    check(message.kind(i) <= static_cast<std::uint32_t>(SavedValue::Kind::object),
          "a kind that there is not");
    value.kind = static_cast<SavedValue::Kind>(message.kind(i));
    check(message.properties_number(i) < static_cast<std::uint32_t>(message.dtype_size()),
          "no such properties");
    const auto p = static_cast<int>(message.properties_number(i));
    value.properties = {message.dtype(p), message.layout(p), message.element_bytes(p), message.flags(p)};
    check(message.shape_number(i) < shapes.size(), "no such shape");
    value.shape = shapes[message.shape_number(i)];
    check_size(value.shape, value.properties.element_bytes);
    if (!values.has_mesh()) continue;
    const std::uint64_t first = std::uint64_t{message.placement_number(i)} * mesh_rank;
    check(first + mesh_rank <= static_cast<std::uint64_t>(message.placement_code_size()),
          "no such placements");
    for (std::size_t d = 0; d < mesh_rank; ++d) {
      const Placement placement = placement_from(message.placement_code(static_cast<int>(first + d)));
      check(placement.kind == Placement::Kind::replicate ||
                static_cast<std::size_t>(placement.dimension) < value.shape.size(),
            "a placement on a dimension that the tensor does not have");
      value.placements.push_back(placement);
    }
  }
  return values;
}

}  // namespace

std::string encode(const SavedValues& values) {
  wire::SavedValues message = message_of(values);
  return finish_message(message);
}

SavedValues decode_values(std::string_view bytes) {
  return values_from(read_message<wire::SavedValues>(bytes, "a description of what is saved"));
}

}  // namespace shardwright
