#include "planner/save/export_wire.h"

#include <optional>
#include <utility>

#include "planner/error.h"
#include "planner/names/torch_dtypes.h"
#include "planner/save/save_wire.h"
#include "planner/wire/plan.pb.h"
#include "planner/wire/protobuf_message.h"

namespace shardwright {
namespace {

constexpr std::uint32_t version = 2;

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
  return bytes_of_message(message);
}

ExportHoldings decode_holdings(const std::string& bytes) {
  const auto message = parsed<wire::ExportHoldings>(bytes);
  ExportHoldings holdings;
  holdings.state = message.state();
  holdings.order.assign(message.order().begin(), message.order().end());
  holdings.asked.assign(message.asked().begin(), message.asked().end());
  for (const wire::BlockColumn& column : message.columns()) holdings.columns.push_back(read(column));
  return holdings;
}

std::string encode_share(const ExportShare& share) {
  wire::ExportShare message;
  message.set_version(version);
  message.set_tensors(share.tensors);
  message.set_refusal(share.refusal);
  message.set_writes(share.writes);
  for (const BlockColumn& column : share.columns) write(column, *message.add_columns());
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
