#pragma once

// What every wire form does with its messages. Only for sources that see protobuf's headers.

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/unknown_field_set.h>

#include <string>
#include <string_view>

#include "planner/error.h"

namespace shardwright {

/// The message that the bytes hold. `what` names it in errors: "a load plan".
template <typename Message>
Message parse_message(std::string_view bytes, unsigned version, const std::string& what) {
  const google::protobuf::LogSilencer silence;  // what is wrong goes into the error, not to stderr
  Message message;
  constexpr std::size_t most_bytes = std::size_t{1} << 31;  // protobuf's own limit
  if (bytes.size() >= most_bytes || !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    throw Error(ErrorKind::malformed, "this is not " + what + ", or one that has been cut short: " +
                                          std::to_string(bytes.size()) + " bytes that do not parse");
  }
  if (message.version() != version) {
    throw Error(ErrorKind::malformed, "expected " + what + " of version " + std::to_string(version) +
                                          ", found version " + std::to_string(message.version()) +
                                          "; plan again with this release");
  }
  return message;
}

/// Equal bytes for equal messages.
inline std::string bytes_of_message(const google::protobuf::Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

/// Fields of a later release, to be kept by whoever encodes what has been decoded.
inline std::string unknown_fields_of(const google::protobuf::Message& message) {
  std::string bytes;
  message.GetReflection()->GetUnknownFields(message).SerializeToString(&bytes);
  return bytes;
}

inline void restore_unknown_fields(google::protobuf::Message& message, const std::string& bytes) {
  message.GetReflection()->MutableUnknownFields(&message)->ParseFromArray(bytes.data(),
                                                                          static_cast<int>(bytes.size()));
}

}  // namespace shardwright
