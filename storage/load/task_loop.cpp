#include "storage/load/task_loop.h"

#include "storage/boxes/box_reading.h"
#include "storage/load/copies_under_way.h"

namespace shardwright {
namespace {

struct GivesUp {
  TaskReader& reader;
  ~GivesUp() { reader.give_up(); }
};

}  // namespace

void TaskFigures::add(const TaskFigures& other) {
  boxes_with_gaps += other.boxes_with_gaps;
  boxes_in_pieces += other.boxes_in_pieces;
  reading += other.reading;
  decoding += other.decoding;
}

void run_tasks(TaskReader& reader, const TaskLoop& loop, TaskFigures& figures,
               std::vector<Trace::Event>* events) {
  ReadingFigures boxes;
  const GivesUp gives_up{reader};
  CopiesUnderWay copies(reader);
  JoinedTasks joined;
  for (;;) {
    const Clock::time_point begin = Clock::now();
    StagedTask* staged = nullptr;
    copies.release_done();
    // Fills the buffers before it waits; a read that needs no waiting is decoded while it is in cache.
    while (staged == nullptr && reader.has_room() && loop.next(joined)) staged = reader.begin(joined);
    if (staged == nullptr && !reader.is_busy() && copies.any() && !loop.stopped()) {
      copies.wait_for_one();
      figures.reading += Clock::now() - begin;
      continue;
    }
    if (staged == nullptr && (loop.stopped() || !reader.is_busy())) break;
    const bool in_background = staged == nullptr;
    if (in_background) staged = reader.wait();
    Clock::time_point ready = Clock::now();
    figures.reading += ready - begin;
    if (events != nullptr) {
      const std::uint32_t tensor = staged->task.source;
      const std::uint64_t bytes = staged->requested_bytes();
      if (in_background) events->push_back({"read", tensor, bytes, staged->begun, staged->arrived, true});
      events->push_back({in_background ? "wait" : "read", tensor, bytes, begin, ready});
    }
    do {
      DevicePlacer* const device = loop.place(*staged);
      if (device != nullptr) copies.begin(*staged, *device);
      const Clock::time_point placed = Clock::now();
      figures.decoding += placed - ready;
      boxes.count(staged->task.weights);
      boxes.count(staged->task.scales);
      if (events != nullptr) {
        events->push_back({device == nullptr ? "decode" : "copy", staged->task.source, staged->task.bytes(),
                           ready, placed});
      }
      ready = placed;
    } while (staged->turn_to_next());
    if (staged->copies == 0) reader.release(*staged);
  }
  figures.boxes_with_gaps += boxes.boxes_with_gaps;
  figures.boxes_in_pieces += boxes.boxes_in_pieces;
}

}  // namespace shardwright
