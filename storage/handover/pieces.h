#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"

namespace shardwright {

/// Checksums of what a rank has handed over, for the next time to hand over only what has changed: XXH3 of
/// each block of encoded bytes, with the scales that it needs. A caller keeps one on each rank, for each
/// receiver, and gives it to each handing over.
///
/// What has been handed over by a run that was not finished counts as unknown, and is handed over again.
struct PieceSums {
  /// Of a block at most, scales included. A checksum takes 8 bytes of memory; fewer bytes find scattered
  /// changes more closely.
  std::uint64_t block_bytes = 4096;

  // What a handing over keeps here for the next one, which alone reads it.
  std::uint64_t plan = 0;                  ///< of what they are; another plan makes all unknown
  std::vector<std::size_t> first_of_unit;  ///< index into `sums`
  std::vector<std::uint64_t> sums;         ///< of each block
  std::vector<bool> is_known;              ///< whether the receiver has that block

  /// Makes all unknown, as when the receiver has been started anew.
  void forget() {
    plan = 0;
    first_of_unit.clear();
    sums.clear();
    is_known.clear();
  }
};

/// A box of a tensor of the checkpoint that an export would write, and where its bytes are.
///
/// The tensor, viewed as elements of `unit` and in the shape `view`, has these bytes, row-major, in `box`.
/// Nearly always `unit` is its dtype and `view` its shape. They differ where ranks cut what a file holds as
/// one element (four-bit weights in I32: `unit` is U8), and where a box has gaps in the tensor's own shape
/// (interleaved gate and up projections, of which a rank has one).
struct EncodedPiece {
  std::string name;         ///< of the tensor, as the files have it
  std::string layer;        ///< that it is of: "model.layers.3", "lm_head"
  std::uint32_t place = 0;  ///< of the layer among the layers, the same on all ranks
  DType dtype = DType::BF16;
  Shape shape;  ///< of the whole tensor
  DType unit = DType::BF16;
  Shape view;
  Box box;
  std::size_t offset = 0;  ///< of its bytes in the bucket; a multiple of 16
  std::size_t bytes = 0;
};

/// What is asked for: the same on every rank, but for bytes, threads and devices.
struct PieceOptions {
  std::filesystem::path template_directory = {};  ///< these as ExportOptions has them
  std::string model = "auto";
  std::string layout = "automodel";
  std::string quantization = "none";
  std::vector<std::string> quantized_weights = {};
  bool strict = true;
  bool strict_dtypes = false;

  /// Memory that pieces are handed over in, at least smallest_bucket; larger tensors come in several pieces.
  std::size_t bucket_bytes = std::size_t{256} << 20;

  /// Of what this rank has handed over before: only what has changed since is handed over. Must outlive the
  /// pieces. Null: everything.
  PieceSums* changed_since = nullptr;

  int threads = 0;                ///< of this rank; 0: as many as this process may use processors
  std::size_t staging_bytes = 0;  ///< between tensors and bucket; 0: 1 MiB a thread, more for CUDA devices
  DeviceOptions devices = {};     ///< for tensors on CUDA devices
};

inline constexpr std::size_t smallest_bucket = std::size_t{64} << 10;

/// A tensor of the checkpoint.
struct HandedTensor {
  std::string name;  ///< as the files have it
  DType dtype = DType::BF16;
  Shape shape;
  std::string layer;   ///< see EncodedPiece
  std::string weight;  ///< that it belongs to, as the files have it; its own name where it belongs to none
};

struct PieceSource;  // what Pieces holds; internal

/// What a rank hands over of an export without files: the boxes that it would write, each byte of the
/// checkpoint on one rank. Layer by layer; scales, and what else belongs to a weight, right behind it.
class Pieces {
 public:
  /// For begin_pieces(), which makes one.
  explicit Pieces(std::unique_ptr<PieceSource> source);
  Pieces(Pieces&&) noexcept;
  ~Pieces();

  /// Bytes that next() needs at most.
  std::size_t bucket_bytes() const;

  /// Bytes of all pieces of this rank, those that have not changed included.
  std::uint64_t bytes() const;

  /// The tensors of the whole checkpoint, in the order of handing over: what belongs to a weight right behind
  /// it. Pieces of a weight and of these come mixed.
  std::vector<HandedTensor> tensors() const;

  /// Memory beside the bucket that next() took, where it was most.
  std::size_t peak_staging_bytes() const;

  /// Encodes the next bucket into `memory`, and returns its pieces; none when all have been. The tensors must
  /// not have changed since the beginning. Throws Error(mismatch), naming tensor and element, for values that
  /// cannot be encoded so; Error(device), naming tensor and call.
  std::vector<EncodedPiece> next(std::byte* memory);

  /// Says that all pieces have arrived: what next() compares with, the next time, is these. Only then: what
  /// has been handed over without it is handed over again. REQUIRES: next() has returned none.
  void keep_sums();

 private:
  std::unique_ptr<PieceSource> source_;
};

/// Begins to hand over the trainer's tensors. All ranks of the job call it, each with its own parts, whose
/// memory must stay as it is until the last bucket; what follows needs no other rank. Reads the values of
/// blocks that are cut by ranks. Throws the same Error on all ranks: mismatch that tells what does not
/// fit, by name, argument.
Pieces begin_pieces(const std::vector<TensorSpec>& specs, const Job& job = {},
                    const PieceOptions& options = {});

}  // namespace shardwright
