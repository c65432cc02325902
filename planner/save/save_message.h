#pragma once

// What the messages of save_plan.proto have in common. Only for sources that see protobuf's headers.

#include <string>
#include <string_view>

#include "planner/error.h"
#include "planner/save/save_wire.h"
#include "planner/wire/protobuf_message.h"
#include "planner/wire/save_plan.pb.h"

namespace shardwright {

/// Refuses a message that parses and makes no sense.
inline void check(bool holds, const char* why) {
  if (!holds) throw Error(ErrorKind::malformed, std::string("this plan of a save is damaged: ") + why);
}

inline constexpr std::uint64_t most_dimensions = 64;
inline constexpr std::uint64_t most_elements = std::uint64_t{1} << 62;
inline constexpr std::int64_t most_ranks = std::int64_t{1} << 31;

/// The bytes of a message that is complete.
template <typename Message>
std::string finish_message(Message& message) {
  message.set_version(save_wire_version);
  message.set_end(true);
  return bytes_of_message(message);
}

template <typename Message>
Message read_message(std::string_view bytes, const std::string& what) {
  auto message = parse_message<Message>(bytes, save_wire_version, what);
  if (!message.end()) throw Error(ErrorKind::malformed, "this is " + what + " that has been cut short");
  return message;
}

}  // namespace shardwright
