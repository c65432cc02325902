#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "storage/files/open_files.h"
#include "storage/write/export_tasks.h"

namespace shardwright {

/// Encodes weights with the scales that a template has for them.
///
/// A value that the template's code stands for keeps that code; so that what was loaded from the template is
/// written as it was, byte for byte, whatever encoder made it. Any other gets the nearest code.
class TemplateCodes {
 public:
  /// The template must outlive it.
  explicit TemplateCodes(const Catalog& template_catalog)
      : template_(template_catalog), files_(template_catalog, false) {}

  /// The box of the weight of which encode() gives the bytes. Where elements share bytes, a byte is written
  /// by whoever has its lower half.
  static Box written_box(const Transfer& transfer, const Box& box);

  /// The row-major bytes of written_box(). Values are the native elements of `box`, which lies inside the
  /// transfer's source box. Throws Error(mismatch), naming the weight, for a value that the scales have no
  /// code for, as it is too large; and where the upper half of a byte whose lower half is another's has
  /// changed. Throws Error(io) as InputFile. Thread-safe.
  std::vector<std::byte> encode(const Transfer& transfer, const SourceTensor& stored, const Box& box,
                                const StridedMemory& values, DType dtype) const;

  /// All bytes of a tensor of the template that is seen under that name.
  std::vector<std::byte> bytes_of(const std::string& name) const;

  /// The bytes of a box of it.
  std::vector<std::byte> bytes_of(const std::string& name, const Box& box) const;

 private:
  std::vector<std::byte> bytes_of_box(const SourceTensor& tensor, const Shape& shape, const Box& box) const;

  /// The global scale of a weight, which is read once; 1 if it has none.
  float global_of(const Encoding& encoding, const std::string& weight) const;

  const Catalog& template_;
  mutable OpenFiles files_;
  mutable std::mutex lock_;  // of the next
  mutable std::map<std::string, float> globals_;
};

}  // namespace shardwright
