#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"

namespace shardwright {

// Who hands what to whom, when a trainer gives its weights to an engine. The tensors are those that an export
// of the trainer's state dict would write: a catalog of them, the same on all ranks.
// Boxes count bytes where elements share them (planner/geometry/byte_boxes.h), else elements.

/// A box of an exported tensor: what a rank has to give, or needs.
struct ExportedBox {
  std::uint32_t tensor = 0;  ///< index into Catalog::tensors
  Shape view;                ///< that it is a box of; empty: the tensor's own shape
  Box box;

  bool operator==(const ExportedBox&) const = default;
};

/// What goes from one rank to another: the part of a need that the sender has.
struct HandedBox {
  std::uint32_t need = 0;  ///< number of it, among those of the rank that gets it
  ExportedBox part;

  bool operator==(const HandedBox&) const = default;
};

/// What goes between this rank and another one, in the order in which it goes.
struct HandedList {
  int rank = 0;  ///< the other one
  std::vector<HandedBox> boxes;

  bool operator==(const HandedList&) const = default;
};

/// The layers of a hand-over, each of which is committed at once.
struct HandedLayers {
  std::vector<std::string> names;        ///< in the order in which they go
  std::vector<std::uint32_t> of_tensor;  ///< by index into Catalog::tensors
};

/// One rank's part of a hand-over.
struct RefitPlan {
  std::vector<HandedList> sends;     ///< by rising rank
  std::vector<HandedList> receives;  ///< likewise
  std::size_t message_bytes = 0;     ///< at most so many in one message, but for a box that cannot be cut

  bool operator==(const RefitPlan&) const = default;
};

/// What a rank of an engine needs, in the order of its Transfers.
std::vector<ExportedBox> needs_of(const std::vector<Transfer>& transfers);

/// What a rank of the trainer can give, no two boxes of which overlap.
struct GivenBoxes {
  std::vector<ExportedBox> boxes;
  std::vector<std::vector<std::uint32_t>> of_tensor;  ///< numbers of those of each tensor of the catalog

  GivenBoxes(std::vector<ExportedBox> given, const Catalog& catalog);
};

/// What a rank sends to one of those needs; boxes of more than `message_bytes` are cut between rows. Throws
/// Error(mismatch), naming the tensor, where both sides see it in views of their own.
std::vector<HandedBox> handed_boxes(const GivenBoxes& given, const std::vector<ExportedBox>& needs,
                                    const Catalog& catalog, const HandedLayers& layers,
                                    std::size_t message_bytes);

/// Proves that the boxes that come fill each need once. Throws Error(mismatch) that lists the tensors of
/// which parts are missing or come twice: a fault of the plan.
void expect_all(const std::vector<ExportedBox>& needs, const std::vector<HandedList>& receives,
                const Catalog& catalog);

/// Bytes of a box.
std::size_t bytes_of_part(const ExportedBox& part, const Catalog& catalog);

/// Boxes that go in one message, one behind the other, each at a multiple of `alignment_in_message` bytes.
struct Message {
  std::uint32_t layer = 0;
  std::size_t first = 0;  ///< of HandedList::boxes
  std::size_t count = 0;
  std::size_t bytes = 0;
};

inline constexpr std::size_t alignment_in_message = 16;

/// The messages that a list goes in, in order; each is of one layer.
std::vector<Message> messages_of(const std::vector<HandedBox>& boxes, const Catalog& catalog,
                                 const HandedLayers& layers, std::size_t message_bytes);

/// The wire form (planner/wire/refit.proto). Decoding throws Error(malformed) for bytes that are cut short,
/// damaged or of another version, and for boxes that are not inside tensors of the catalog, or of needs that
/// are not there.
std::string encode_needs(const std::vector<ExportedBox>& needs);

/// `given`: what a rank asks this for that gives a few of all tensors. Needs of others keep their number,
/// have no box, and are not looked at. Null: all are wanted.
std::vector<ExportedBox> decode_needs(std::string_view bytes, const Catalog& catalog,
                                      const GivenBoxes* given = nullptr);
std::string encode(const RefitPlan& plan);
RefitPlan decode_refit_plan(std::string_view bytes, const Catalog& catalog);

}  // namespace shardwright
