#include "storage/format/torch_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "planner/geometry/box.h"
#include "storage/format/pickle.h"

namespace shardwright {
namespace {

constexpr char magic[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";  // a pickle of one long
constexpr std::int64_t protocol_version = 1001;
constexpr char storage_key[] = "0";

std::string pickled_version() {
  Pickle pickle;
  pickle.integer(protocol_version);
  return std::move(pickle).finish();
}

void add_shape(Pickle& pickle, const Shape& shape) {
  pickle.mark();
  for (const std::int64_t size : shape) pickle.integer(size);
  pickle.tuple();
}

/// What torch calls the system information, and does not look at. Name and offset tell one chunk from another
/// whose bytes have the same form.
std::string pickled_system(const std::string& name, const Shape& offset, std::size_t padding) {
  Pickle pickle;
  pickle.empty_dict();
  pickle.mark();
  pickle.text("protocol_version");
  pickle.integer(protocol_version);
  pickle.text("little_endian");
  pickle.truth(true);
  pickle.text("name");
  pickle.text(name);
  pickle.text("offset");
  add_shape(pickle, offset);
  pickle.text("padding");
  pickle.text(std::string(padding, ' '));
  pickle.set_items();
  return std::move(pickle).finish();
}

/// Strides as torch has them, for which a dimension of no elements counts as one.
Shape strides_of(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;)
    strides[d - 1] = strides[d] * std::max<std::int64_t>(shape[d], 1);
  return strides;
}

/// A call that makes the tensor of a storage whose bytes come later.
std::string pickled_tensor(const std::string& dtype, const Shape& shape, std::uint64_t bytes) {
  Pickle pickle;
  pickle.global("torch._utils", "_rebuild_tensor_v3");
  pickle.mark();
  pickle.mark();
  pickle.text("storage");
  pickle.global("torch", "ByteStorage");  // torch.load(weights_only=True) cannot read an UntypedStorage here
  pickle.text(storage_key);
  pickle.text("cpu");
  pickle.integer(static_cast<std::int64_t>(bytes));
  pickle.none();  // no view of another storage
  pickle.tuple();
  pickle.persistent();
  pickle.integer(0);  // where in the storage it begins
  add_shape(pickle, shape);
  add_shape(pickle, strides_of(shape));
  pickle.truth(false);                          // requires_grad
  pickle.global("collections", "OrderedDict");  // of hooks
  pickle.empty_tuple();
  pickle.reduce();
  pickle.global("torch", dtype);
  pickle.tuple();
  pickle.reduce();
  return std::move(pickle).finish();
}

std::string pickled_storage_keys() {
  Pickle pickle;
  pickle.empty_list();
  pickle.text(storage_key);
  pickle.append();
  return std::move(pickle).finish();
}

}  // namespace

std::string torch_stream_header(const std::string& name, const std::string& dtype,
                                std::uint64_t element_bytes, const Box& chunk) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(volume(chunk.size)) * element_bytes;
  const std::string before = std::string(magic, sizeof magic - 1) + pickled_version();
  std::string behind = pickled_tensor(dtype, chunk.size, bytes) + pickled_storage_keys();
  for (int i = 0; i < 8; ++i) behind += static_cast<char>(bytes >> (8 * i) & 0xff);
  const std::size_t unpadded = before.size() + pickled_system(name, chunk.offset, 0).size() + behind.size();
  const std::size_t padding = -unpadded % torch_stream_alignment;
  return before + pickled_system(name, chunk.offset, padding) + behind;
}

}  // namespace shardwright
