#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "planner/load/load_plan.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_share.h"

namespace shardwright {

/// What a rank has, ready to be encoded into memory as an export would store it. What it points at (specs'
/// memory, the request's template) must outlive it, and it must stay where it is.
class EncodingSource {
 public:
  /// `share` is what plan_export() has said to this rank; the others as shared_export(). `most_bytes`: of
  /// elements and scales of a task, see work(). Throws as shared_export() and plan_with_memory().
  EncodingSource(const std::string& share, const std::vector<TensorSpec>& specs, const RankState& state,
                 const ExportRequest& request, PartsOfRank which, std::size_t most_bytes,
                 const ExportWriting& options);
  EncodingSource(const EncodingSource&) = delete;
  EncodingSource& operator=(const EncodingSource&) = delete;

  const DescribedExport& described() const { return share_.described; }
  const ExportLayout& layout() const { return share_.described.layout; }
  const PartsToWrite& parts() const { return share_.parts; }

  /// Transfers, each a box of an HF tensor that this rank has, and tasks that hold each of their elements
  /// once. Further tasks may be made by hand: any box inside a transfer's that cuts no block which the
  /// transfer does not cut.
  const ExportTasks& work() const { return work_; }

  const Transfer& transfer_of(const ExportTask& task) const {
    return *work_.transfers[task.transfer].transfer;
  }

  /// Null where no template has codes or scales for the export.
  const TemplateCodes* templates() const { return templates_ ? &*templates_ : nullptr; }

  const ExportWriting& options() const { return options_; }

 private:
  SharedExport share_;
  LoadPlan plan_;
  ExportWriting options_;
  std::optional<TemplateCodes> templates_;
  ExportTasks work_;
};

/// Cuts a task of the source into those that its threads encode at a time, and adds them.
void cut_for_threads(const EncodingSource& source, const EncodingResources& resources, const ExportTask& task,
                     std::vector<ExportTask>& parts);

/// A task, and where its bytes go.
struct TaskInMemory {
  ExportTask task;

  /// What the task gives, see boxes_of(); `bytes` are not looked at.
  BoxesOfTask boxes;

  /// Room for the bytes of each box, row-major, in CPU memory; null for one that is not wanted.
  std::byte* elements = nullptr;
  std::byte* scales = nullptr;
};

/// Bytes that a box takes in memory.
std::size_t bytes_of(const EncodedBox& encoded, const Catalog& catalog);

/// Encodes the tasks on the source's threads, large ones in parts. Throws as encode_tasks(); what has been
/// written to memory by then is undefined.
EncodingFigures encode_into_memory(const EncodingSource& source, std::span<const TaskInMemory> tasks);

}  // namespace shardwright
