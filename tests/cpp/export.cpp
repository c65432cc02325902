/// Two ranks load a released checkpoint, export it in MXFP8 and in BF16, and load what they have exported.

#include <ATen/ATen.h>
#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include <cstring>
#include <fstream>
#include <map>

#include "ranks.h"

namespace {

struct Weights {
  std::vector<at::Tensor> tensors;
  std::vector<shardwright::TensorSpec> specs;
};

/// This rank's part of all tensors of a checkpoint: rows, or experts.
Weights empty_weights(const std::filesystem::path& path, const shardwright::Job& job) {
  const std::map<shardwright::DType, at::ScalarType> dtypes{{shardwright::DType::BF16, at::kBFloat16},
                                                            {shardwright::DType::F32, at::kFloat}};
  const shardwright::Placement rows{shardwright::Placement::Kind::shard, 0};
  const shardwright::Catalog catalog = shardwright::read_catalog(path);
  Weights weights;
  for (const shardwright::NativeTensor& native :
       shardwright::native_tensors(catalog, shardwright::weight_map_for(catalog))) {
    const shardwright::Shape local = shardwright::local_shape(native.shape, {job.ranks}, {job.rank}, {rows});
    weights.tensors.push_back(at::zeros(local, dtypes.at(native.dtype)));
    weights.specs.push_back(shardwright::describe(native.fqn, weights.tensors.back(), native.shape,
                                                  {job.ranks}, {job.rank}, {rows}));
  }
  return weights;
}

/// The bytes of a piece, which fills whole rows of its tensor, are those that the files have.
void expect_stored(const shardwright::Catalog& exported, const shardwright::EncodedPiece& piece,
                   const std::byte* bytes) {
  const shardwright::SourceTensor& tensor = exported.find(piece.name).front();
  expect(tensor.dtype == piece.dtype && tensor.shape == piece.shape, piece.name + " is the exported one");
  expect(piece.view == piece.shape, piece.name + " is a box of its own shape");
  if (piece.bytes == 0) return;
  std::int64_t first = 0;
  for (std::size_t d = 0; d < piece.shape.size(); ++d) first = first * piece.shape[d] + piece.box.offset[d];
  const std::uint64_t of_element =
      (tensor.end - tensor.begin) / static_cast<std::uint64_t>(shardwright::volume(piece.shape));
  std::ifstream file(exported.path_of(tensor), std::ios::binary);
  file.seekg(static_cast<std::streamoff>(tensor.begin + static_cast<std::uint64_t>(first) * of_element));
  std::vector<char> stored(piece.bytes);
  file.read(stored.data(), static_cast<std::streamsize>(stored.size()));
  expect(std::memcmp(stored.data(), bytes, stored.size()) == 0, piece.name + " is handed over as exported");
}

/// The same without files.
void hand_over(const shardwright::Job& job, const std::vector<shardwright::TensorSpec>& specs,
               const std::filesystem::path& released, const std::filesystem::path& exported) {
  const shardwright::Catalog catalog = shardwright::read_catalog(exported);
  std::size_t count = 0;
  const auto send = [&](const shardwright::EncodedPiece& piece, const std::byte* bytes) {
    expect_stored(catalog, piece, bytes);
    ++count;
  };
  // README: hand over
  shardwright::PieceOptions options;
  options.template_directory = released;
  options.quantization = "mxfp8";
  shardwright::Pieces pieces = shardwright::begin_pieces(specs, job, options);
  std::vector<std::byte> bucket(pieces.bucket_bytes());
  for (auto some = pieces.next(bucket.data()); !some.empty(); some = pieces.next(bucket.data())) {
    for (const shardwright::EncodedPiece& piece : some) send(piece, bucket.data() + piece.offset);
  }
  // README: end
  expect(count > 0 && pieces.tensors().size() == catalog.tensors.size(), "all tensors are handed over");
}

void export_rank(const shardwright::Job& job, const std::filesystem::path& released,
                 const std::filesystem::path& folder) {
  const Weights weights = empty_weights(released, job);
  shardwright::load_checkpoint(weights.specs, released, job);

  // README: export
  shardwright::ExportOptions options;
  options.template_directory = released;  // whose names, dtypes, config and tokenizer
  options.quantization = "mxfp8";         // where the template has scales
  const shardwright::ExportReport report =
      shardwright::export_checkpoint(weights.specs, folder / "exported", job, options);
  // README: end
  expect(report.left_out.empty() && report.rounded.empty(), "all of it, and nothing rounded");

  hand_over(job, weights.specs, released, folder / "exported");

  options.quantization = "none";
  shardwright::export_checkpoint(weights.specs, folder / "bf16", job, options);
  for (const char* name : {"exported", "bf16"}) {
    const Weights again = empty_weights(folder / name, job);
    shardwright::load_checkpoint(again.specs, folder / name, job);
    for (std::size_t i = 0; i < weights.tensors.size(); ++i)
      expect(at::equal(weights.tensors[i], again.tensors[i]),
             weights.specs[i].fqn + " comes back bit for bit");
  }
}

}  // namespace

int main() {
  const std::filesystem::path folder = new_folder();
  shardwright::generate(folder / "released", {.preset = "tiny"});
  on_ranks(2, [&](const shardwright::Job& job) { export_rank(job, folder / "released", folder); });

  const shardwright::Catalog released = shardwright::read_catalog(folder / "released");
  const shardwright::Catalog exported = shardwright::read_catalog(folder / "exported");
  const shardwright::Catalog bf16 = shardwright::read_catalog(folder / "bf16");
  expect(exported.config == released.config, "config.json is the template's");
  expect(bf16.config.find("quantization_config") == std::string::npos, "config.json says that it is BF16");
  expect(exported.tensors.size() == released.tensors.size(), "the export has the template's tensors");
  for (const shardwright::SourceTensor& tensor : released.tensors) {
    const auto found = exported.find(tensor.name);
    expect(found.size() == 1 && found[0].dtype == tensor.dtype && found[0].shape == tensor.shape,
           tensor.name + " has the template's dtype and shape");
  }
  for (const char* name : {"exported", "bf16"}) {
    const shardwright::VerifyReport report = shardwright::verify_checkpoint(folder / name);
    expect(report.problems.empty() && report.bytes_hashed > 0, "its checksums are right");
  }
  std::filesystem::remove_all(folder);
  return 0;
}
