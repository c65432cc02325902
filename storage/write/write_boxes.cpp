#include "storage/write/write_boxes.h"

#include <vector>

#include "storage/boxes/box_reading.h"
#include "storage/write/made_tensors.h"

namespace shardwright {

void write_box(const EncodedBox& encoded, const ExportLayout& layout, RowSums& sums,
               const WriteBytes& write) {
  const SourceTensor& stored = layout.catalog.tensors[encoded.tensor];
  if (layout.has_checksums)
    sums.add(encoded.tensor, encoded.shape, encoded.box, {encoded.bytes, strides_of(encoded, stored.dtype)});
  const BoxReading place = reading_of(stored, encoded.shape, encoded.box);
  const std::uint64_t step =
      encoded.row_bytes < 0 ? place.run_bytes : static_cast<std::uint64_t>(encoded.row_bytes);
  const std::string what = "tensor " + stored.name;
  const std::byte* bytes = encoded.bytes;
  for_each_run(place, [&](std::uint64_t offset) {
    write(stored.file, offset, bytes, place.run_bytes, what);
    bytes += step;
  });
}

void write_header(std::size_t file, const ExportLayout& layout, const TemplateCodes* templates,
                  const KnownNumbers& numbers, RowSums& sums, const WriteBytes& write) {
  const std::string& header = layout.headers[file];
  write(file, 0, reinterpret_cast<const std::byte*>(header.data()), header.size(), "the header");
  const auto write_whole = [&](std::uint32_t tensor, const std::vector<std::byte>& bytes) {
    const Shape& shape = layout.catalog.tensors[tensor].shape;
    if (!bytes.empty()) write_box({tensor, shape, whole(shape), bytes.data(), -1}, layout, sums, write);
  };
  for (const std::uint32_t tensor : layout.copied) {
    const SourceTensor& copied = layout.catalog.tensors[tensor];
    if (copied.file == file) write_whole(tensor, templates->bytes_of(copied.name));
  }
  for (const Made& made : layout.made) {
    if (layout.catalog.tensors[made.tensor].file == file)
      write_whole(made.tensor, bytes_of_made(made, layout, numbers));
  }
}

}  // namespace shardwright
