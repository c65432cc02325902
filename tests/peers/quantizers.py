"""A tiny model, quantized on the CPU by nvidia-modelopt 0.47 and compressed-tensors 0.20, and saved as they save it."""

import copy
import warnings
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
from tiny_models import Tensors
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, Qwen3Config, Qwen3ForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 72,
    "tie_word_embeddings": False,
    "architectures": ["Qwen3ForCausalLM"],
}


def dense_model(seed: int = 0) -> torch.nn.Module:
    """In BF16, of a magnitude in each matrix, with blocks of zeros of both signs, and lone large values."""
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES)).to(torch.bfloat16)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            values = torch.randn(parameter.shape, generator=generator) * 0.02 * 10.0 ** (i % 5 - 2)
            if values.dim() == 2:
                values[3, 128:256] = 0
                values[:, 5] = -0.0
                values[7, ::50] *= 300
            parameter.copy_(values)
    return model


def quiet(work: Any) -> Any:
    """What ``work`` gives, without the warnings that the tools give on machines without GPUs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


# --- nvidia-modelopt --------------------------------------------------------------------------------------------------


def written_by_modelopt(model: torch.nn.Module, config: str, path: Path) -> None:
    """``config`` is a name of modelopt.torch.quantization, such as "NVFP4_DEFAULT_CFG"."""

    def work() -> None:
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        tokens = torch.arange(SIZES["vocab_size"])[None]
        quantized = mtq.quantize(copy.deepcopy(model), getattr(mtq, config), lambda one: one(tokens))
        export_hf_checkpoint(quantized, export_dir=str(path))

    quiet(work)


def decoded_by_modelopt(stored: Tensors, dtype: torch.dtype) -> Tensors:
    """Every weight as ModelOpt dequantizes it; what else has ``.weight`` as it is, in ``dtype``."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, MXFP8QTensor, NVFP4QTensor

    decoded: Tensors = {}
    for name, codes in stored.items():
        if not name.endswith(".weight"):
            continue
        scales = stored.get(f"{name}_scale")
        if scales is None:
            decoded[name] = codes.to(dtype)
            continue
        is_packed = codes.dtype == torch.uint8
        shape = torch.Size((*codes.shape[:-1], codes.shape[-1] * (2 if is_packed else 1)))
        whole = stored.get(f"{name}_scale_2")
        made: Any
        if whole is not None:
            made = NVFP4QTensor(shape, dtype, codes)
            made = made.dequantize(dtype=dtype, scale=scales, double_scale=whole, block_sizes={-1: 16})
        elif is_packed:
            made = MXFP4QTensor(shape, dtype, codes).dequantize(
                dtype=dtype, scale=scales, block_sizes={-1: 32}
            )
        elif scales.dtype == torch.uint8:
            made = MXFP8QTensor(shape, dtype, codes).dequantize(dtype=dtype, scale=scales)
        else:
            spread = scales[:, None] if scales.dim() == 1 else scales
            made = FP8QTensor(shape, dtype, codes).dequantize(dtype=dtype, scale=spread)
        decoded[name] = made
    return decoded


# --- compressed-tensors -----------------------------------------------------------------------------------------------


def minima_and_maxima(weight: torch.Tensor, arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each block that has a scale, as llm-compressor's observer without a history finds them."""
    strategy = str(getattr(arguments.strategy, "value", arguments.strategy))
    if strategy in ("group", "tensor_group"):
        groups = weight.unflatten(-1, (-1, arguments.group_size))
        return groups.amin(-1), groups.amax(-1)
    if strategy == "channel":
        return weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    if strategy == "block":
        rows, columns = arguments.block_structure
        blocks = weight.unflatten(0, (-1, rows)).unflatten(-1, (-1, columns))
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    return weight.min(), weight.max()


def written_by_compressed_tensors(model: torch.nn.Module, groups: dict[str, Any], path: Path) -> None:
    """``groups`` is the "config_groups" of a configuration: names of presets with their targets, or schemes."""

    def work() -> None:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        quantized = copy.deepcopy(model)
        config = QuantizationConfig(config_groups=groups, ignore=["lm_head"])
        apply_quantization_config(quantized, config)
        for module in quantized.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None:
                continue
            weight, whole = module.weight.data, None
            if hasattr(module, "weight_global_scale"):
                whole = generate_gparam(weight.min(), weight.max())
                module.weight_global_scale.data = whole
            scales, _ = calculate_qparams(*minima_and_maxima(weight, scheme.weights), scheme.weights, whole)
            module.weight_scale.data = scales.reshape(module.weight_scale.shape)
        compressor = ModelCompressor.from_pretrained_model(quantized)
        compressor.compress_model(quantized)
        quantized.save_pretrained(path)
        compressor.update_config(str(path))

    quiet(work)


def read_by_transformers(path: Path) -> Tensors:
    """What transformers makes of it, which has compressed-tensors decompress it."""

    def work() -> Tensors:
        config = CompressedTensorsConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", quantization_config=config)
        state: Tensors = model.state_dict()
        return state

    return quiet(work)


def exported_as(theirs: Path, ours: Path) -> Tensors:
    """Loads their checkpoint and exports it with itself as the template. Returns what was loaded."""
    state = sw.empty_state_dict(theirs, layout="transformers")
    sw.load(state, theirs, layout="transformers")
    sw.export(state, ours, quantization="template", template=theirs, layout="transformers")
    return state
