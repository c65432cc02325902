"""nemo-automodel's M3 models load the same state dict through our adapter as through their own. Run by `make compare`.

One thing nemo-automodel's adapter does wrong, and what is expected instead stands at `unscaled_by_theirs`.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from nemo_automodel.components.checkpoint._backports.hf_storage import _HuggingFaceStorageReader as NemoReader
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.minimax_m3_vl.config import MiniMaxM3VLConfig, MiniMaxM3VLTextConfig
from nemo_automodel.components.models.minimax_m3_vl.model import (
    MiniMaxM3SparseForCausalLM,
    MiniMaxM3SparseForConditionalGeneration,
)
from safetensors.torch import load_file, save_file
from shardwright.models.minimax_m3_vl import state_dict_adapter as ours
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader

Sd = dict[str, Any]
EH_PROJ = "model.mtp.layers.0.eh_proj.weight"
READERS: dict[str, Callable[[str], Any]] = {
    "nemo": NemoReader,
    "torch": TorchReader,
    "ours": sw.HuggingFaceStorageReader,
}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def read_all(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module", params=["vl", "text"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[1, 0], ids=["mtp", "no_mtp"])
def mtp(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def path(kind: str, tmp_path_factory) -> Path:
    """The checkpoint `tiny`, or the text part of it with the names of a text-only one."""
    folder = tmp_path_factory.mktemp("nemo")
    vl = folder / "vl"
    sw.generate(vl, preset="tiny", seed=0, values="any")
    if kind == "vl":
        return vl
    prefix = "language_model."
    tensors = {name.removeprefix(prefix): t for name, t in read_all(vl).items() if name.startswith(prefix)}
    return write_checkpoint(folder / "text", tensors, config_of(vl)["text_config"])


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def text_config_for_nemo(text: dict[str, Any], mtp: int) -> dict[str, Any]:
    """nemo-automodel names the settings of the indexer otherwise."""
    sparse = [int(kind == "minimax_m3_sparse") for kind in text["layer_types"]]
    indexer = {
        "use_sparse_attention": True,
        "sparse_attention_freq": sparse,
        "sparse_num_index_heads": text["index_n_heads"],
        "sparse_index_dim": text["index_head_dim"],
        "sparse_block_size": 4,
        "sparse_topk_blocks": 2,
    }
    return text | {"sparse_attention_config": indexer, "num_mtp_modules": mtp}


@pytest.fixture(scope="module")
def model(path: Path, kind: str, mtp: int) -> torch.nn.Module:
    config = config_of(path)
    backend = BackendConfig(linear="torch", rms_norm="torch", rope_fusion=False)
    if kind == "text":
        return MiniMaxM3SparseForCausalLM(
            MiniMaxM3VLTextConfig(**text_config_for_nemo(config, mtp)), backend=backend
        )
    whole = MiniMaxM3VLConfig(
        text_config=text_config_for_nemo(config["text_config"], mtp),
        vision_config=config["vision_config"],
        projector_hidden_size=config["projector_hidden_size"],
    )
    return MiniMaxM3SparseForConditionalGeneration(whole, backend=backend)


def replacement(model: torch.nn.Module) -> ours.StateDictAdapter:
    """Our adapter, made from what nemo-automodel's was made from."""
    theirs = model.state_dict_adapter
    text = getattr(theirs, "text_adapter", theirs)
    return getattr(ours, type(theirs).__name__)(theirs.config, text.moe_config, text.backend, text.dtype)


def loaded(model: torch.nn.Module, path: Path, reader: str, **options: Any) -> Sd:
    """What nemo-automodel does with `model.state_dict_adapter`, whichever that is, into a model of any other values."""
    for tensor in model.state_dict().values():
        tensor.view(torch.uint8).fill_(0x3A)
    hf = model.state_dict_adapter.to_hf(
        model.state_dict(), exclude_key_regex=r".*_extra_state.*", quantization=True, **options
    )
    dcp.load(hf, storage_reader=READERS[reader](str(path)), no_dist=True)
    native = model.state_dict_adapter.from_hf(hf, device_mesh=None)
    missing, unexpected = model.load_state_dict(native, strict=False)
    assert not unexpected and set(missing) <= model.state_dict_adapter.view_loaded_native_keys
    return deepcopy(dict(model.state_dict()))


def unscaled_by_theirs(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`eh_proj`, stored in FP8, as nemo-automodel loads it and as it is.

    Its adapter asks for it by a rule of names, as BF16 and without scales, and gets the bare FP8 elements.
    """
    name = next(name for name in tensors if name.endswith("eh_proj.weight"))
    bare, scale_inv = tensors[name].to(torch.float32), tensors[name + "_scale_inv"].to(torch.float32)
    scales = torch.exp2(scale_inv - 127).repeat_interleave(32, dim=1)[:, : bare.shape[1]]
    return bare.to(torch.bfloat16), (bare * scales).to(torch.bfloat16)


@pytest.fixture(scope="module")
def by_theirs(model: torch.nn.Module, path: Path) -> Sd:
    state = loaded(model, path, "nemo")
    assert state.keys() == model.state_dict().keys()
    return state


@pytest.mark.parametrize("reader", READERS)
def test_our_adapter_in_its_place_gives_the_same_state_dict(
    model: torch.nn.Module, path: Path, mtp: int, by_theirs: Sd, reader: str, monkeypatch
):
    monkeypatch.setattr(model, "state_dict_adapter", replacement(model))
    expected = dict(by_theirs)
    assert (EH_PROJ in expected) == bool(mtp)
    if mtp:
        theirs, right = unscaled_by_theirs(read_all(path))
        assert same(expected[EH_PROJ], theirs) and not same(theirs, right)
        expected[EH_PROJ] = right
    found = loaded(model, path, reader, checkpoint=path)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []


@pytest.mark.parametrize("reader", READERS)
def test_called_as_theirs_is_called_ours_differs_in_nothing(
    model: torch.nn.Module, path: Path, mtp: int, by_theirs: Sd, reader: str, monkeypatch
):
    """Without `checkpoint` the rule of names decides for ours as well. Readers that are not ours obey it; ours decodes
    what has scales, whatever dtype it is asked for."""
    monkeypatch.setattr(model, "state_dict_adapter", replacement(model))
    expected = dict(by_theirs)
    if mtp and reader == "ours":
        expected[EH_PROJ] = unscaled_by_theirs(read_all(path))[1]
    found = loaded(model, path, reader)
    assert [name for name in expected if not same(found[name], expected[name])] == []


def test_the_model_holds_what_load_puts_into_it(model: torch.nn.Module, path: Path, monkeypatch):
    """The same model filled by `sw.load`, which knows no adapter."""
    monkeypatch.setattr(model, "state_dict_adapter", replacement(model))
    by_adapter = loaded(model, path, "ours", checkpoint=path)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    sw.load(state, path)
    assert [name for name in state if not same(by_adapter[name], state[name])] == []


def test_without_quantization_both_give_the_same_tensors(model: torch.nn.Module, by_theirs: Sd):
    theirs = model.state_dict_adapter.to_hf(dict(by_theirs))
    found = replacement(model).to_hf(dict(by_theirs))
    assert found.keys() == theirs.keys()
    assert [name for name in theirs if not same(found[name], theirs[name])] == []
    back = replacement(model).from_hf(dict(theirs))
    assert [name for name in by_theirs if not same(back[name], by_theirs[name])] == []


def test_a_request_names_the_same_tensors(model: torch.nn.Module):
    state = dict(model.state_dict())
    theirs = model.state_dict_adapter.to_hf(state, quantization=True)
    found = replacement(model).to_hf(state, quantization=True)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in theirs.items()
    }
    assert all((found[name] == 127).all() for name in found if name.endswith("_scale_inv"))
