#pragma once

#include <ATen/ATen.h>
#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include <string>
#include <vector>

/// A small training state, of which every element is known: a matrix cut along one dimension over the ranks,
/// a vector and a step count that all have.
struct Training {
  at::Tensor matrix;  ///< this rank's part of [6, 8]
  at::Tensor vector;
  at::Tensor step;
  std::vector<shardwright::TensorSpec> specs;

  static at::Tensor whole_matrix() { return at::arange(48, at::kFloat).view({6, 8}) / 7; }
  static at::Tensor whole_vector() { return at::arange(5, at::kFloat).to(at::kBFloat16); }

  /// With memory of these values, or of zeros to be loaded into.
  static Training of_rank(int rank, int ranks, int dimension, bool filled) {
    Training training;
    training.matrix = whole_matrix().chunk(ranks, dimension)[static_cast<std::size_t>(rank)].contiguous();
    training.vector = whole_vector();
    training.step = at::full({}, 7, at::kLong);
    if (!filled) {
      for (const at::Tensor& tensor : {training.matrix, training.vector, training.step}) tensor.zero_();
    }
    const shardwright::Placement cut{shardwright::Placement::Kind::shard, dimension};
    training.specs = {
        shardwright::describe("model.weight", training.matrix, {6, 8}, {ranks}, {rank}, {cut}),
        shardwright::describe("model.scale", training.vector),
        shardwright::describe("step", training.step),
    };
    return training;
  }

  bool equals(const Training& other) const {
    return at::equal(matrix, other.matrix) && at::equal(vector, other.vector) && at::equal(step, other.step);
  }
};
