#include "storage/load/copies_under_way.h"

namespace shardwright {

CopiesUnderWay::~CopiesUnderWay() {
  while (any()) {
    try {
      wait_for_one();
    } catch (...) {  // the device is lost, and with it what was under way
      release_first();
    }
  }
}

void CopiesUnderWay::begin(StagedTask& task, DevicePlacer& placer) {
  copies_.push_back({&task, task.task.transfer, &placer, nullptr});
  try {
    copies_.back().done =
        placer.submit(task.task.transfer, task.part(), task.span(), task.is_on_device, task.scales_apart());
  } catch (...) {
    copies_.pop_back();
    throw;
  }
  ++task.copies;
}

void CopiesUnderWay::release_done() {
  while (any() && copies_.front().placer->has_happened(copies_.front().done, copies_.front().transfer)) {
    release_first();
  }
}

void CopiesUnderWay::wait_for_one() {
  copies_.front().placer->wait_for(copies_.front().done, copies_.front().transfer);
  release_first();
}

void CopiesUnderWay::release_first() {
  const Copy copy = copies_.front();
  copies_.pop_front();
  copy.placer->give_back(copy.done);
  if (--copy.task->copies == 0) reader_.release(*copy.task);
}

}  // namespace shardwright
