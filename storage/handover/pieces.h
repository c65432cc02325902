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

/// A box of a tensor of the checkpoint that an export would write, and where its bytes are.
///
/// The tensor, viewed as elements of `unit` and in the shape `view`, has these bytes, row-major, in `box`.
/// Nearly always `unit` is its dtype and `view` its shape. They differ where ranks cut what a file holds as
/// one element (four-bit weights in I32: `unit` is U8), and where a box has gaps in the tensor's own shape
/// (interleaved gate and up projections, of which a rank has one).
struct EncodedPiece {
  std::string name;   ///< of the tensor, as the files have it
  std::string layer;  ///< that it is of: "model.layers.3", "lm_head"
  DType dtype = DType::BF16;
  Shape shape;  ///< of the whole tensor
  DType unit = DType::BF16;
  Shape view;
  Box box;
  std::size_t offset = 0;  ///< of its bytes in the bucket; a multiple of 64
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

  int threads = 0;                ///< of this rank; 0: as many as this process may use processors
  std::size_t staging_bytes = 0;  ///< between tensors and bucket; 0: 1 MiB a thread, more for CUDA devices
  DeviceOptions devices = {};     ///< for tensors on CUDA devices
};

inline constexpr std::size_t smallest_bucket = std::size_t{1} << 20;

struct PieceSource;  // storage/handover/piece_source.h

/// What a rank hands over of an export without files: the boxes that it would write, each byte of the
/// checkpoint on one rank. Layer by layer; scales, and what else belongs to a weight, right behind it.
class Pieces {
 public:
  /// `source` is made by begin_pieces() or piece_source().
  explicit Pieces(std::unique_ptr<PieceSource> source);
  Pieces(Pieces&&) noexcept;
  ~Pieces();

  /// Bytes that next() needs at most.
  std::size_t bucket_bytes() const;

  /// Bytes of all pieces.
  std::uint64_t bytes() const;

  /// Memory beside the bucket that next() took, where it was most.
  std::size_t peak_staging_bytes() const;

  /// Encodes the next bucket into `memory`, and returns its pieces; none when all have been. The tensors must
  /// not have changed since the beginning. Throws Error(mismatch), naming tensor and element, for values that
  /// cannot be encoded so; Error(device), naming tensor and call.
  std::vector<EncodedPiece> next(std::byte* memory);

 private:
  std::unique_ptr<PieceSource> source_;
};

/// Begins to hand over the trainer's tensors. All ranks of the job call it, each with its own parts, whose
/// memory must stay as it is until the last bucket; what follows needs no other rank. Reads the values of
/// blocks that are cut by ranks. Throws the same Error on all ranks: mismatch that lists all that does not
/// fit, by name, argument.
Pieces begin_pieces(const std::vector<TensorSpec>& specs, const Job& job = {},
                    const PieceOptions& options = {});

}  // namespace shardwright
