#include "planner/torch/torch_tensor.h"

#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

DeviceKind kind_of(const at::Device& device) {
  if (device.is_cpu()) return DeviceKind::cpu;
  if (device.is_cuda()) return DeviceKind::cuda;
  return device.is_meta() ? DeviceKind::meta : DeviceKind::other;
}

}  // namespace

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kBool:
      return DType::BOOL;
    case at::kByte:
      return DType::U8;
    case at::kChar:
      return DType::I8;
    case at::kUInt16:
      return DType::U16;
    case at::kShort:
      return DType::I16;
    case at::kUInt32:
      return DType::U32;
    case at::kInt:
      return DType::I32;
    case at::kUInt64:
      return DType::U64;
    case at::kLong:
      return DType::I64;
    case at::kFloat8_e4m3fn:
      return DType::F8_E4M3;
    case at::kFloat8_e5m2:
      return DType::F8_E5M2;
    case at::kFloat8_e8m0fnu:
      return DType::F8_E8M0;
    case at::kHalf:
      return DType::F16;
    case at::kBFloat16:
      return DType::BF16;
    case at::kFloat:
      return DType::F32;
    case at::kDouble:
      return DType::F64;
    case at::kComplexFloat:
      return DType::C64;
    default:
      throw Error(ErrorKind::argument, std::string(c10::toString(tensor.scalar_type())) +
                                           " is a dtype that safetensors does not have");
  }
}

TensorSpec describe(std::string fqn, const at::Tensor& tensor) {
  return describe(std::move(fqn), tensor, tensor.sizes().vec(), {}, {}, {});
}

TensorSpec describe(std::string fqn, const at::Tensor& local, const Shape& global_shape,
                    const Shape& mesh_shape, const Shape& coordinate,
                    const std::vector<Placement>& placements) {
  TensorSpec spec;
  spec.fqn = std::move(fqn);
  spec.dtype = dtype_of(local);
  spec.global_shape = global_shape;
  spec.local_shape = local.sizes().vec();
  spec.local_strides = local.strides().vec();
  spec.device = kind_of(local.device());
  spec.device_index = local.device().is_cuda() ? local.device().index() : 0;
  spec.device_name = local.device().str();
  spec.data = local.is_meta() || local.numel() == 0 ? nullptr : local.mutable_data_ptr();
  spec.boxes = local_boxes(global_shape, mesh_shape, coordinate, placements);
  return spec;
}

void mark_written(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace shardwright
