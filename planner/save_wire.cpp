#include "planner/save_wire.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "planner/error.h"
#include "planner/protobuf_message.h"
#include "planner/save_plan.pb.h"

namespace shardwright {
namespace {

constexpr std::size_t most_name_bytes =
    4096;  // so that names that share all but a byte cannot fill the memory
constexpr std::uint64_t most_dimensions = 64;
constexpr std::int64_t most_ranks = std::int64_t{1} << 31;
constexpr std::uint64_t most_split_factor = std::uint64_t{1} << 20;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(ErrorKind::malformed, "this plan of a save is damaged: " + why);
}

void check(bool holds, const char* why) {
  if (!holds) refuse(why);
}

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

/// The bytes of a message that is complete.
template <typename Message>
std::string finish(Message& message) {
  message.set_version(save_wire_version);
  message.set_end(true);
  return bytes_of_message(message);
}

template <typename Message>
Message read(std::string_view bytes, const std::string& what) {
  auto message = parse_message<Message>(bytes, save_wire_version, what);
  if (!message.end()) throw Error(ErrorKind::malformed, "this is " + what + " that has been cut short");
  return message;
}

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
  restore_unknown_fields(message, values.unknown_fields);
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
  values.unknown_fields = unknown_fields_of(message);
  return values;
}

/// The least shape that holds all chunks.
Shape end_of(const ChunkLayout& layout) {
  Shape end(layout.rank, 0);
  for (std::size_t i = 0; i < layout.corners.size(); i += 2 * end.size()) {
    for (std::size_t d = 0; d < end.size(); ++d) {
      std::int64_t last = 0;
      check(!__builtin_add_overflow(layout.corners[i + d], layout.corners[i + end.size() + d], &last),
            "a corner that there is not");
      end[d] = std::max(end[d], last);
    }
  }
  return end;
}

std::string_view view(const Hash& hash) { return {hash.data(), hash.size()}; }

}  // namespace

std::string encode(const SavedValues& values) {
  wire::SavedValues message = message_of(values);
  return finish(message);
}

SavedValues decode_values(std::string_view bytes) {
  return values_from(read<wire::SavedValues>(bytes, "a description of what is saved"));
}

std::string encode(const RankState& state) {
  wire::RankState message;
  for (const RankState::Part& part : state.parts) {
    wire::SavedPart* to = message.add_parts();
    to->set_values(std::string(view(part.values)));
    to->mutable_items()->Add(part.packed.begin(), part.packed.end());
  }
  for (const std::string& values : state.values) message.add_values(values);
  message.set_rank(state.rank);
  restore_unknown_fields(message, state.unknown_fields);
  return finish(message);
}

RankState decode_state(std::string_view bytes) {
  auto message = read<wire::RankState>(bytes, "what a rank has to save");
  RankState state;
  for (const wire::SavedPart& from : message.parts()) {
    RankState::Part& part = state.parts.emplace_back();
    check(from.values().size() == part.values.size(), "a hash that is none");
    std::copy(from.values().begin(), from.values().end(), part.values.begin());
    part.packed.assign(from.items().begin(), from.items().end());
  }
  for (std::string& values : *message.mutable_values()) state.values.push_back(std::move(values));
  check(message.rank() >= 0 && message.rank() < most_ranks, "a rank that there is not");
  state.rank = message.rank();
  state.unknown_fields = unknown_fields_of(message);
  return state;
}

std::vector<std::uint64_t> pack(const SavedItems& items, const SavedValues& values) {
  std::vector<std::uint64_t> packed;
  const std::int64_t* corner = items.corners.data();
  std::uint32_t before = 0;
  for (const std::uint32_t index : items.value) {
    const Shape& shape = values.values.at(index).shape;
    const std::size_t rank = shape.size();
    packed.push_back(index - before);
    before = index;
    std::uint64_t cut = 0;
    for (std::size_t d = 0; d < rank; ++d) {
      if (corner[d] != 0 || corner[rank + d] != shape[d]) cut |= std::uint64_t{1} << d;
    }
    packed.push_back(cut);
    for (std::size_t d = 0; d < rank; ++d) {
      if ((cut >> d & 1) == 0) continue;
      packed.push_back(static_cast<std::uint64_t>(corner[d]));
      packed.push_back(static_cast<std::uint64_t>(corner[rank + d]));
    }
    corner += 2 * rank;
  }
  return packed;
}

SavedItems unpack(const std::vector<std::uint64_t>& packed, const SavedValues& values) {
  SavedItems items;
  items.value.reserve(packed.size() / 4);
  items.corners.reserve(packed.size());
  std::uint64_t index = 0;
  for (std::size_t at = 0; at < packed.size();) {
    check(packed.size() - at >= 2, "an item without its box");
    check(packed[at] < values.values.size() && (index += packed[at]) < values.values.size(),
          "an item of no value");
    const std::uint64_t cut = packed[at + 1];
    at += 2;
    const Shape& shape = values.values[index].shape;
    const std::size_t rank = shape.size();
    check(cut >> rank == 0, "a box of more dimensions than its tensor");
    const std::size_t first = items.corners.size();
    items.value.push_back(static_cast<std::uint32_t>(index));
    items.corners.resize(first + 2 * rank);
    for (std::size_t d = 0; d < rank; ++d) {
      std::int64_t& offset = items.corners[first + d];
      std::int64_t& size = items.corners[first + rank + d];
      size = shape[d];
      if ((cut >> d & 1) == 0) continue;
      check(packed.size() - at >= 2, "an item without its box");
      const auto whole = static_cast<std::uint64_t>(shape[d]);
      check(packed[at] <= whole && packed[at + 1] <= whole - packed[at], "a box outside its tensor");
      offset = static_cast<std::int64_t>(packed[at]);
      size = static_cast<std::int64_t>(packed[at + 1]);
      at += 2;
    }
  }
  return items;
}

std::string encode_writes(const LeftToOthers& left_to_others) {
  wire::RankWrites message;
  for (const std::vector<std::uint32_t>& items : left_to_others) {
    wire::ItemRuns* runs = message.add_left_to_others();
    std::uint32_t end = 0;
    for (std::size_t i = 0; i < items.size();) {
      std::size_t next = i + 1;
      while (next < items.size() && items[next] == items[next - 1] + 1) ++next;
      runs->add_run(items[i] - end);
      runs->add_run(next - i);
      end = items[next - 1] + 1;
      i = next;
    }
  }
  return finish(message);
}

LeftToOthers decode_writes(std::string_view bytes, const std::vector<std::size_t>& items) {
  const auto message = read<wire::RankWrites>(bytes, "what a rank is to write");
  check(message.left_to_others_size() == static_cast<int>(items.size()), "it is for other parts");
  LeftToOthers left_to_others(items.size());
  for (std::size_t part = 0; part < items.size(); ++part) {
    const auto& runs = message.left_to_others(static_cast<int>(part)).run();
    check(runs.size() % 2 == 0, "a run without its length");
    std::uint64_t at = 0;
    for (auto run = runs.begin(); run != runs.end(); run += 2) {
      check(run[0] <= items[part] - at && run[1] <= items[part] - at - run[0],
            "more items than the rank has");
      at += run[0];
      for (const std::uint64_t end = at + run[1]; at < end; ++at)
        left_to_others[part].push_back(static_cast<std::uint32_t>(at));
    }
  }
  return left_to_others;
}

std::string encode(const GlobalMetadata& metadata) {
  wire::GlobalMetadata message;
  message.set_values(encode(metadata.values));
  message.mutable_layout()->Add(metadata.layout.begin(), metadata.layout.end());
  for (const ChunkLayout& layout : metadata.layouts) {
    message.add_layout_rank(layout.rank);
    message.add_layout_chunks(layout.count());
    const std::size_t step = 2 * std::size_t{layout.rank};
    for (std::size_t i = 0; i < layout.corners.size(); ++i) {
      message.add_corner(layout.corners[i] - (i < step ? 0 : layout.corners[i - step]));
    }
  }
  return finish(message);
}

GlobalMetadata decode_metadata(std::string_view bytes) {
  const auto message = read<wire::GlobalMetadata>(bytes, "a checkpoint's metadata");
  GlobalMetadata metadata;
  metadata.values = decode_values(message.values());
  check(!metadata.values.has_mesh(), "metadata with a mesh");
  check(message.layout_rank_size() == message.layout_chunks_size(), "layouts without their chunks");
  auto corner = message.corner().begin();
  for (int i = 0; i < message.layout_rank_size(); ++i) {
    ChunkLayout& layout = metadata.layouts.emplace_back();
    layout.rank = message.layout_rank(i);
    const std::size_t step = 2 * std::size_t{layout.rank};
    const auto left = static_cast<std::uint64_t>(message.corner().end() - corner);
    check(layout.rank < most_dimensions && (step == 0 || message.layout_chunks(i) <= left / step),
          "chunks without their corners");
    const std::size_t numbers = step == 0 ? 0 : message.layout_chunks(i) * step;
    layout.corners.resize(numbers);
    for (std::size_t k = 0; k < numbers; ++k) {
      check(!__builtin_add_overflow(*corner++, k < step ? 0 : layout.corners[k - step], &layout.corners[k]) &&
                layout.corners[k] >= 0,
            "a corner that there is not");
    }
  }
  check(corner == message.corner().end(), "corners of no chunk");
  metadata.layout.assign(message.layout().begin(), message.layout().end());
  check(metadata.layout.size() == metadata.values.values.size(), "values without their chunks");
  std::map<std::uint32_t, Shape> ends;
  for (std::size_t i = 0; i < metadata.layout.size(); ++i) {
    const SavedValue& value = metadata.values.values[i];
    if (value.kind == SavedValue::Kind::object) continue;
    check(metadata.layout[i] < metadata.layouts.size(), "no such layout");
    const ChunkLayout& layout = metadata.layouts[metadata.layout[i]];
    check(layout.rank == value.shape.size(), "chunks of another tensor");
    const auto end = ends.find(metadata.layout[i]);
    const Shape& reached = end == ends.end() ? (ends[metadata.layout[i]] = end_of(layout)) : end->second;
    for (std::size_t d = 0; d < reached.size(); ++d) {
      check(reached[d] <= value.shape[d], "a chunk that reaches beyond its tensor");
    }
  }
  return metadata;
}

}  // namespace shardwright
