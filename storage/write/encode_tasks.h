#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "storage/device/device_gatherers.h"
#include "storage/device/devices_in_use.h"
#include "storage/progress.h"
#include "storage/write/export_layout.h"
#include "storage/write/export_share.h"
#include "storage/write/export_tasks.h"
#include "storage/write/template_codes.h"

namespace shardwright {

// Encoding, apart from where the bytes go: to files (export_writer.h), or to memory (storage/handover/).

/// Threads, and what each of them takes: for tensors in CPU memory, and for those on devices.
struct EncodingResources {
  std::size_t buffer_bytes = 0;
  GatherBounds gathering;
};

/// `bytes` is what is to be encoded. Throws Error(argument) for a staging that is too small.
EncodingResources resources_for(const ExportWriting& options, const std::vector<TensorSpec>& specs,
                                const DevicesInUse& devices, std::size_t bytes);

/// How large the tasks of a tensor may be.
TaskBounds task_bounds(const EncodingResources& resources, const ExportLayout& layout,
                       const TensorSpec& spec);

/// Whether the scales of a weight's cut blocks are told by columns, and its values are encoded where they
/// are: a matrix in MXFP8.
bool is_in_columns(const ExportLayout& layout, const SourceTensor& weight);

/// Bytes of a box of a stored tensor.
struct EncodedBox {
  std::uint32_t tensor = 0;  ///< index into Catalog::tensors
  Shape shape;               ///< that it is seen in
  Box box;                   ///< of that
  const std::byte* bytes = nullptr;
  std::int64_t row_bytes = -1;  ///< between its rows, of elements of a byte; -1: they follow each other
};

/// Elements of memory, for each dimension of the box.
Shape strides_of(const EncodedBox& encoded, DType dtype);

/// What encoding a task gives; `bytes` are null. The first box may be empty, the second is that of the
/// scales.
struct BoxesOfTask {
  EncodedBox elements;
  std::optional<EncodedBox> scales;
};

BoxesOfTask boxes_of(const ExportTask& task, const ExportTasks& work, const PartsToWrite& parts,
                     const ExportLayout& layout);

/// Gets a box of tasks[number], on the thread that has encoded it; the bytes are there until it returns.
using ReceiveBox = std::function<void(std::size_t number, const EncodedBox& encoded)>;

/// What encoding did. `receiving` is seconds of all threads together, a part of those of `gathered`.
struct EncodingFigures {
  GatherFigures gathered;
  std::size_t staging_bytes = 0;  ///< of all threads, for tensors in CPU memory
  double receiving = 0;
};

/// Encodes tasks of `work`, which hands on what each gives by `receive`. `templates` encodes where the layout
/// has a template to encode as; null otherwise. REQUIRES: `devices` are open, and the calling thread is that
/// of DevicesInUse::run(). Throws as run_export() but for files, and what `receive` throws.
EncodingFigures encode_tasks(const PartsToWrite& parts, const ExportLayout& layout, const ExportTasks& work,
                             std::span<const ExportTask> tasks, const TemplateCodes* templates,
                             const DevicesInUse& devices, const EncodingResources& resources,
                             Progress* progress, const ReceiveBox& receive);

}  // namespace shardwright
