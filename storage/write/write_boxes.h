#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "planner/save/weight_numbers.h"
#include "storage/format/row_checksums.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_layout.h"
#include "storage/write/template_codes.h"

namespace shardwright {

/// Takes bytes for a place in a file of an export. `what` says in messages what they are of.
using WriteBytes = std::function<void(std::size_t file, std::uint64_t offset, const std::byte* bytes,
                                      std::uint64_t count, const std::string& what)>;

/// Writes a box of a stored tensor, and adds it to the sums of rows, if the export has checksums. Thread-safe
/// if `write` is.
void write_box(const EncodedBox& encoded, const ExportLayout& layout, RowSums& sums, const WriteBytes& write);

/// Writes the header of a file, and the tensors in it that no rank has values of: copies of the template's,
/// and what is made of `numbers`. `templates` may be null where nothing is copied.
void write_header(std::size_t file, const ExportLayout& layout, const TemplateCodes* templates,
                  const KnownNumbers& numbers, RowSums& sums, const WriteBytes& write);

}  // namespace shardwright
