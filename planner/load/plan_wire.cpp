#include "planner/load/plan_wire.h"

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/decode.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/problems.h"
#include "planner/wire/plan.pb.h"
#include "planner/wire/protobuf_message.h"

namespace shardwright {
namespace {

template <typename Repeated>
void set(Repeated* field, const auto& values) {
  field->Assign(values.begin(), values.end());
}

Shape shape_from(const auto& field) { return Shape(field.begin(), field.end()); }

void set(wire::Box* to, const Box& box) {
  set(to->mutable_offset(), box.offset);
  set(to->mutable_size(), box.size);
}

Box box_from(const wire::Box& box) { return {shape_from(box.offset()), shape_from(box.size())}; }

/// Indices into Catalog::tensors of the plan's sources.
std::vector<std::uint32_t> find_sources(const wire::LoadPlan& message, const Catalog& catalog,
                                        Problems& problems) {
  std::vector<std::uint32_t> indices;
  for (const wire::Source& source : message.sources()) {
    const auto chunks = catalog.find(source.name());
    const auto chunk = std::find_if(chunks.begin(), chunks.end(), [&](const SourceTensor& tensor) {
      return tensor.offset == shape_from(source.chunk_offset()) &&
             tensor.shape == shape_from(source.shape()) && name_of(tensor.dtype) == source.dtype();
    });
    if (chunk == chunks.end()) {
      problems.add(source.name() + ": expected " + source.dtype() + " " +
                   to_string(shape_from(source.shape())) + " as when the plan was made, found " +
                   (chunks.empty() ? "no such tensor in the checkpoint"
                                   : std::string(name_of(chunks.front().dtype)) + " " +
                                         to_string(chunks.front().shape)));
      indices.push_back(0);
    } else {
      indices.push_back(static_cast<std::uint32_t>(&*chunk - catalog.tensors.data()));
    }
  }
  return indices;
}

/// The parts of the whole tensor that the plan fills.
std::vector<LocalBox> boxes_of(const wire::Destination& destination) {
  std::vector<LocalBox> boxes;
  auto offset = destination.local_offset().begin();
  for (const wire::Box& box : destination.box()) {
    LocalBox& to = boxes.emplace_back(LocalBox{box_from(box), {}});
    const auto rank = std::ssize(to.global.offset);
    if (!lies_inside(to.global, shape_from(destination.global_shape())) ||
        destination.local_offset().end() - offset < rank) {
      throw Error(ErrorKind::malformed,
                  "this load plan is damaged: a part of " + destination.fqn() + " is no box of it");
    }
    to.local_offset.assign(offset, offset + rank);
    offset += rank;
  }
  return boxes;
}

/// Indices into the specs of the plan's destinations.
std::vector<std::uint32_t> find_destinations(const wire::LoadPlan& message,
                                             const std::vector<TensorSpec>& specs, Problems& problems) {
  std::map<std::string_view, std::uint32_t> by_name;
  for (std::size_t i = 0; i < specs.size(); ++i) by_name.emplace(specs[i].fqn, static_cast<std::uint32_t>(i));
  std::vector<std::uint32_t> indices;
  for (const wire::Destination& destination : message.destinations()) {
    const auto found = by_name.find(destination.fqn());
    const TensorSpec* spec = found == by_name.end() ? nullptr : &specs[found->second];
    if (spec == nullptr || name_of(spec->dtype) != destination.dtype() ||
        spec->global_shape != shape_from(destination.global_shape()) ||
        spec->local_shape != shape_from(destination.local_shape())) {
      problems.add(destination.fqn() + ": expected " + destination.dtype() + " " +
                   to_string(shape_from(destination.local_shape())) + " of " +
                   to_string(shape_from(destination.global_shape())) + " as when the plan was made, found " +
                   (spec == nullptr ? "no such tensor of the trainer"
                                    : std::string(name_of(spec->dtype)) + " " + to_string(spec->local_shape) +
                                          " of " + to_string(spec->global_shape)));
    } else if (const std::vector<LocalBox> boxes = boxes_of(destination); boxes != spec->boxes) {
      const auto first = [](const std::vector<LocalBox>& of) {
        return of.empty() ? std::string("nothing") : to_string(of.front().global);
      };
      problems.add(destination.fqn() + ": expected a rank that holds " + first(boxes) + " of " +
                   to_string(spec->global_shape) + ", found one that holds " + first(spec->boxes) +
                   "; a plan is for one rank");
    }
    indices.push_back(spec == nullptr ? 0 : found->second);
  }
  if (indices.size() != specs.size()) {
    problems.add("the plan writes " + std::to_string(indices.size()) + " tensors, the trainer has " +
                 std::to_string(specs.size()));
  }
  return indices;
}

/// Checks one transfer against its tensors and returns it; what does not fit is noted.
Transfer transfer_from(const wire::Transfer& message, const std::vector<std::uint32_t>& sources,
                       const std::vector<std::uint32_t>& destinations, const Catalog& catalog,
                       const std::vector<TensorSpec>& specs) {
  const auto refuse = [] {
    throw Error(ErrorKind::malformed, "this load plan is damaged: a transfer refers to what is not there");
  };
  if (message.source() >= sources.size() || message.destination() >= destinations.size() ||
      (message.has_scales() && message.scales() >= sources.size())) {
    refuse();
  }
  Transfer transfer;
  transfer.source = sources[message.source()];
  transfer.destination = destinations[message.destination()];
  transfer.source_box = box_from(message.source_box());
  transfer.destination_offset = shape_from(message.destination_offset());
  transfer.axes.assign(message.axes().begin(), message.axes().end());
  transfer.source_view = shape_from(message.source_view());
  transfer.steps = shape_from(message.steps());
  const SourceTensor& source = catalog.tensors[transfer.source];
  const TensorSpec& spec = specs[transfer.destination];
  transfer.encoding = {source.dtype, false, DType::U8, 1, 1};
  if (!message.has_scales() && (!can_convert(source.dtype, spec.dtype) ||
                                (source.dtype != spec.dtype && !scales_of(catalog, source.name).empty()))) {
    refuse();
  }
  if (!transfer.source_view.empty() && !view_with(transfer.source_view, source.shape)) refuse();
  const Shape& seen = seen_shape(transfer, source);
  if (!lies_inside(transfer.source_box, seen) || is_empty(transfer.source_box) ||
      transfer.axes.size() != seen.size() ||
      (!transfer.steps.empty() && transfer.steps.size() != transfer.axes.size()))
    refuse();
  if (!lies_inside(written_lattice(transfer), spec.local_shape)) refuse();
  if (message.has_scales()) {
    transfer.scales = sources[message.scales()];
    transfer.scale_box = box_from(message.scale_box());
    transfer.first_row_in_block = message.first_row_in_block();
    transfer.first_column_in_block = message.first_column_in_block();
    const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
    if (scales.name == source.name) refuse();
    const bool is_multiplied = weight_name_of(scales.name) != source.name;
    transfer.encoding = is_multiplied
                            ? multiplied_by(catalog, catalog.find(source.name), catalog.find(scales.name))
                            : encoding_of(catalog, catalog.find(source.name));
    const Encoding& encoding = transfer.encoding;
    const auto global = global_scale_of(catalog, encoding, source.name);
    if (message.has_global_scale() != !global.empty()) refuse();
    if (!global.empty()) {
      if (message.global_scale() >= sources.size()) refuse();
      transfer.global = sources[message.global_scale()];
      if (transfer.global != &global.front() - catalog.tensors.data()) refuse();
    }
    const std::size_t rank = seen.size();
    if (message.block_rows() != encoding.block_rows || message.block_columns() != encoding.block_columns ||
        message.first_row_in_block() < 0 || message.first_row_in_block() >= encoding.block_rows ||
        message.first_column_in_block() < 0 || message.first_column_in_block() >= encoding.block_columns) {
      refuse();
    }
    if (!transfer.source_view.empty()) {
      if (!can_see_scales(encoding, transfer.source_view, source.shape)) refuse();
      transfer.encoding.scale_rank = static_cast<int>(rank);
      if (!view_with(seen_scale_shape(transfer, scales), scales.shape)) refuse();
    }
    if (!lies_inside(transfer.scale_box, seen_scale_shape(transfer, scales)) || is_empty(transfer.scale_box))
      refuse();
    Box in_blocks = transfer.source_box;
    in_blocks.offset.assign(rank, 0);
    in_blocks.offset[rank - 2] = transfer.first_row_in_block;
    in_blocks.offset[rank - 1] = transfer.first_column_in_block;
    if (scale_box_of(transfer.encoding, in_blocks).size != transfer.scale_box.size) refuse();
  }
  return transfer;
}

}  // namespace

std::string encode_plan(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs) {
  wire::LoadPlan message;
  message.set_version(plan_wire_version);
  std::map<std::uint32_t, std::uint32_t> numbers;  // of the sources, by index into Catalog::tensors
  const auto number_of = [&](std::uint32_t index) {
    const auto [entry, is_new] = numbers.emplace(index, static_cast<std::uint32_t>(numbers.size()));
    if (is_new) {
      const SourceTensor& tensor = catalog.tensors[index];
      wire::Source* source = message.add_sources();
      source->set_name(tensor.name);
      source->set_dtype(std::string(name_of(tensor.dtype)));
      set(source->mutable_shape(), tensor.shape);
      set(source->mutable_chunk_offset(), tensor.offset);
    }
    return entry->second;
  };
  for (const TensorSpec& spec : specs) {
    wire::Destination* destination = message.add_destinations();
    destination->set_fqn(spec.fqn);
    destination->set_dtype(std::string(name_of(spec.dtype)));
    set(destination->mutable_global_shape(), spec.global_shape);
    set(destination->mutable_local_shape(), spec.local_shape);
    for (const LocalBox& box : spec.boxes) {
      set(destination->add_box(), box.global);
      destination->mutable_local_offset()->Add(box.local_offset.begin(), box.local_offset.end());
    }
  }
  for (const Transfer& transfer : plan.transfers) {
    wire::Transfer* to = message.add_transfers();
    to->set_source(number_of(transfer.source));
    set(to->mutable_source_box(), transfer.source_box);
    if (transfer.scales >= 0) {
      to->set_scales(number_of(static_cast<std::uint32_t>(transfer.scales)));
      set(to->mutable_scale_box(), transfer.scale_box);
      to->set_block_rows(transfer.encoding.block_rows);
      to->set_block_columns(transfer.encoding.block_columns);
      to->set_first_row_in_block(transfer.first_row_in_block);
      to->set_first_column_in_block(transfer.first_column_in_block);
    }
    if (transfer.global >= 0) to->set_global_scale(number_of(static_cast<std::uint32_t>(transfer.global)));
    to->set_destination(transfer.destination);
    set(to->mutable_destination_offset(), transfer.destination_offset);
    set(to->mutable_axes(), transfer.axes);
    set(to->mutable_source_view(), transfer.source_view);
    set(to->mutable_steps(), transfer.steps);
  }
  for (const std::string& name : plan.unused) message.add_unused(name);
  for (const std::string& name : plan.unknown) message.add_unknown(name);
  for (const std::string& name : plan.not_loaded) message.add_not_loaded(name);
  for (const std::uint32_t zero : plan.zeros) message.add_zeros(zero);
  restore_unknown_fields(message, plan.unknown_fields);
  return bytes_of_message(message);
}

LoadPlan decode_plan(std::string_view bytes, const Catalog& catalog, const std::vector<TensorSpec>& specs) {
  const auto message = parse_message<wire::LoadPlan>(bytes, plan_wire_version, "a load plan");
  Problems problems;
  const std::vector<std::uint32_t> sources = find_sources(message, catalog, problems);
  const std::vector<std::uint32_t> destinations = find_destinations(message, specs, problems);
  problems.throw_if_any(ErrorKind::mismatch, "this load plan was made for other tensors:");
  LoadPlan plan;
  plan.unknown_fields = unknown_fields_of(message);
  plan.unused.assign(message.unused().begin(), message.unused().end());
  plan.unknown.assign(message.unknown().begin(), message.unknown().end());
  plan.not_loaded.assign(message.not_loaded().begin(), message.not_loaded().end());
  std::vector<std::vector<Transfer>> written(specs.size());
  std::vector<bool> is_zero(specs.size(), false);
  for (const std::uint32_t zero : message.zeros()) {
    if (zero >= destinations.size() || is_zero[destinations[zero]])
      throw Error(ErrorKind::malformed, "this load plan is damaged: it fills what is not there with zeros");
    plan.zeros.push_back(destinations[zero]);
    is_zero[destinations[zero]] = true;
  }
  for (const wire::Transfer& transfer : message.transfers()) {
    plan.transfers.push_back(transfer_from(transfer, sources, destinations, catalog, specs));
    const Transfer& last = plan.transfers.back();
    written[last.destination].push_back(last);
  }
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const bool left_alone =
        std::find(plan.not_loaded.begin(), plan.not_loaded.end(), specs[i].fqn) != plan.not_loaded.end();
    std::string fault = fault_of(specs[i]);
    if (fault.empty() && is_zero[i] && !written[i].empty()) fault = "it is filled with zeros, and written";
    if (fault.empty() && !left_alone && !is_zero[i])
      fault = fault_of_writing(specs[i].local_shape, written[i]);
    if (!fault.empty()) problems.add(specs[i].fqn + ": " + fault);
  }
  for (std::string& fault : shared_memory(specs)) problems.add(std::move(fault));
  problems.throw_if_any(ErrorKind::mismatch, "this load plan does not fill the trainer's tensors:");
  order_and_count(plan, specs, catalog);
  return plan;
}

std::vector<Transfer> decode_transfers(std::string_view bytes, const Catalog& catalog) {
  const auto message = parse_message<wire::LoadPlan>(bytes, plan_wire_version, "a load plan");
  Problems problems;
  const std::vector<std::uint32_t> sources = find_sources(message, catalog, problems);
  problems.throw_if_any(ErrorKind::mismatch, "this load plan was made for another checkpoint:");
  std::vector<TensorSpec> specs;  // as far as a transfer is checked against them
  std::vector<std::uint32_t> destinations;
  for (const wire::Destination& destination : message.destinations()) {
    destinations.push_back(static_cast<std::uint32_t>(specs.size()));
    TensorSpec& spec = specs.emplace_back();
    const std::optional<DType> dtype = dtype_named(destination.dtype());
    if (!dtype)
      throw Error(ErrorKind::malformed,
                  "this load plan is damaged: there is no dtype " + destination.dtype());
    spec.dtype = *dtype;
    spec.local_shape = shape_from(destination.local_shape());
  }
  std::vector<Transfer> transfers;
  for (const wire::Transfer& transfer : message.transfers()) {
    transfers.push_back(transfer_from(transfer, sources, destinations, catalog, specs));
  }
  return transfers;
}

}  // namespace shardwright
