#include "planner/save/export_wire.h"

#include <optional>

#include "planner/error.h"
#include "planner/wire/plan.pb.h"
#include "planner/wire/protobuf_message.h"

namespace shardwright {
namespace {

constexpr std::uint32_t version = 2;

[[noreturn]] void malformed(const std::string& what) {
  throw Error(ErrorKind::malformed, "what a rank told of its part of an export: " + what +
                                        "; do all ranks run the same version of shardwright?");
}

void write(const SavedTensor& tensor, wire::SavedTensor& message) {
  message.set_fqn(tensor.fqn);
  message.set_dtype(std::string(name_of(tensor.dtype)));
  message.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
}

SavedTensor read(const wire::SavedTensor& message) {
  const std::optional<DType> dtype = dtype_named(message.dtype());
  if (!dtype) malformed(message.fqn() + " has dtype " + message.dtype());
  return {message.fqn(), *dtype, {message.shape().begin(), message.shape().end()}};
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
  for (const BlockColumn& column : holdings.columns) write(column, *message.add_columns());
  return bytes_of_message(message);
}

ExportHoldings decode_holdings(const std::string& bytes) {
  const auto message = parsed<wire::ExportHoldings>(bytes);
  ExportHoldings holdings;
  holdings.state = message.state();
  holdings.order.assign(message.order().begin(), message.order().end());
  for (const wire::BlockColumn& column : message.columns()) holdings.columns.push_back(read(column));
  return holdings;
}

std::string encode_share(const ExportShare& share) {
  wire::ExportShare message;
  message.set_version(version);
  for (const SavedTensor& tensor : share.tensors) write(tensor, *message.add_tensors());
  message.set_refusal(share.refusal);
  message.set_writes(share.writes);
  for (const BlockColumn& column : share.columns) write(column, *message.add_columns());
  message.mutable_headers()->Add(share.headers.begin(), share.headers.end());
  return bytes_of_message(message);
}

ExportShare decode_share(const std::string& bytes) {
  const auto message = parsed<wire::ExportShare>(bytes);
  ExportShare share;
  for (const wire::SavedTensor& tensor : message.tensors()) share.tensors.push_back(read(tensor));
  share.refusal = message.refusal();
  share.writes = message.writes();
  for (const wire::BlockColumn& column : message.columns()) share.columns.push_back(read(column));
  share.headers.assign(message.headers().begin(), message.headers().end());
  return share;
}

}  // namespace shardwright
