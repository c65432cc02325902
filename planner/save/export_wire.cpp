#include "planner/save/export_wire.h"

#include <cmath>
#include <optional>
#include <utility>

#include "planner/error.h"
#include "planner/names/torch_dtypes.h"
#include "planner/save/save_wire.h"
#include "planner/wire/plan.pb.h"
#include "planner/wire/protobuf_message.h"

namespace shardwright {
namespace {

constexpr std::uint32_t version = 3;

[[noreturn]] void malformed(const std::string& what) {
  throw Error(ErrorKind::malformed, "what a rank told of its part of an export: " + what +
                                        "; do all ranks run the same version of shardwright?");
}

void write(const BlockColumn& column, wire::BlockColumn& message) {
  message.set_weight(column.weight);
  message.set_block(column.block);
  message.set_first_row(column.first_row);
  message.set_scales(column.scales.data(), column.scales.size());
}

BlockColumn read(const wire::BlockColumn& message) {
  if (message.block() < 0 || message.first_row() < 0) malformed(message.weight() + " has a negative block");
  return {message.weight(),
          message.block(),
          message.first_row(),
          {message.scales().begin(), message.scales().end()}};
}

/// Rising places, each as its distance from the one before.
template <class Field>
void write(const std::vector<std::int64_t>& places, Field& field) {
  std::int64_t last = 0;
  for (const std::int64_t place : places) {
    field.Add(static_cast<std::uint64_t>(place - last));
    last = place;
  }
}

template <class Field>
std::vector<std::int64_t> read_places(const Field& field, const std::string& weight) {
  std::vector<std::int64_t> places;
  places.reserve(static_cast<std::size_t>(field.size()));
  std::uint64_t place = 0;
  for (const std::uint64_t distance : field) {
    if (distance > INT64_MAX - place) malformed(weight + " has a place beyond all that there are");
    place += distance;
    places.push_back(static_cast<std::int64_t>(place));
  }
  return places;
}

void write(const WeightNumbers& numbers, wire::WeightNumbers& message) {
  message.set_weight(numbers.weight);
  message.set_largest(numbers.largest);
  write(numbers.blocks, *message.mutable_block());
  message.mutable_magnitude()->Add(numbers.magnitudes.begin(), numbers.magnitudes.end());
  write(numbers.elements, *message.mutable_element());
  message.mutable_value()->Add(numbers.values.begin(), numbers.values.end());
  write(numbers.wanted, *message.mutable_wanted());
}

WeightNumbers read(const wire::WeightNumbers& message) {
  WeightNumbers numbers{message.weight(), message.largest()};
  numbers.blocks = read_places(message.block(), numbers.weight);
  numbers.magnitudes.assign(message.magnitude().begin(), message.magnitude().end());
  numbers.elements = read_places(message.element(), numbers.weight);
  numbers.values.assign(message.value().begin(), message.value().end());
  numbers.wanted = read_places(message.wanted(), numbers.weight);
  if (numbers.magnitudes.size() != numbers.blocks.size() || numbers.values.size() != numbers.elements.size())
    malformed(numbers.weight + " has another number of places than of numbers");
  return numbers;
}

template <class Message>
Message parsed(const std::string& bytes) {
  try {
    return parse_message<Message>(bytes, version, "a message");
  } catch (const Error& error) {
    malformed(error.what());
  }
}

}  // namespace

std::string encode_holdings(const ExportHoldings& holdings) {
  wire::ExportHoldings message;
  message.set_version(version);
  message.set_state(holdings.state);
  message.mutable_order()->Add(holdings.order.begin(), holdings.order.end());
  for (const std::string& argument : holdings.asked) message.add_asked(argument);
  for (const BlockColumn& column : holdings.columns) write(column, *message.add_columns());
  for (const WeightNumbers& numbers : holdings.numbers) write(numbers, *message.add_numbers());
  return bytes_of_message(message);
}

ExportHoldings decode_holdings(const std::string& bytes) {
  const auto message = parsed<wire::ExportHoldings>(bytes);
  ExportHoldings holdings;
  holdings.state = message.state();
  holdings.order.assign(message.order().begin(), message.order().end());
  holdings.asked.assign(message.asked().begin(), message.asked().end());
  for (const wire::BlockColumn& column : message.columns()) holdings.columns.push_back(read(column));
  for (const wire::WeightNumbers& numbers : message.numbers()) holdings.numbers.push_back(read(numbers));
  return holdings;
}

std::string encode_share(const ExportShare& share) {
  wire::ExportShare message;
  message.set_version(version);
  message.set_tensors(share.tensors);
  message.set_refusal(share.refusal);
  message.set_writes(share.writes);
  for (const BlockColumn& column : share.columns) write(column, *message.add_columns());
  for (const WeightNumbers& numbers : share.numbers) write(numbers, *message.add_numbers());
  message.mutable_largest()->Add(share.largest.begin(), share.largest.end());
  message.mutable_headers()->Add(share.headers.begin(), share.headers.end());
  return bytes_of_message(message);
}

ExportShare decode_share(const std::string& bytes) {
  const auto message = parsed<wire::ExportShare>(bytes);
  ExportShare share;
  share.tensors = message.tensors();
  share.refusal = message.refusal();
  share.writes = message.writes();
  for (const wire::BlockColumn& column : message.columns()) share.columns.push_back(read(column));
  for (const wire::WeightNumbers& numbers : message.numbers()) share.numbers.push_back(read(numbers));
  share.largest.assign(message.largest().begin(), message.largest().end());
  for (const float largest : share.largest) {
    if (!(largest >= 0) || std::isinf(largest)) malformed("a largest magnitude that is none");
  }
  share.headers.assign(message.headers().begin(), message.headers().end());
  return share;
}

std::string encode_tensors(const std::vector<SavedTensor>& tensors) {
  SavedValues values;
  for (const SavedTensor& tensor : tensors) {
    SavedValue& value = values.values.emplace_back();
    value.fqn = tensor.fqn;
    value.properties.dtype = torch_name_of(tensor.dtype);
    value.properties.element_bytes = static_cast<std::uint32_t>(bytes_of(tensor.dtype));
    value.shape = tensor.shape;
  }
  return encode(values);
}

std::vector<SavedTensor> decode_tensors(const std::string& bytes) {
  std::vector<SavedTensor> tensors;
  for (SavedValue& value : decode_values(bytes).values) {
    const std::optional<DType> dtype = dtype_of_torch(value.properties.dtype);
    if (!dtype) malformed(value.fqn + " has dtype " + value.properties.dtype);
    tensors.push_back({std::move(value.fqn), *dtype, std::move(value.shape)});
  }
  return tensors;
}

}  // namespace shardwright
