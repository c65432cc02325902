"""Every entry of transformers' conversion mapping, made into rules: what they load is what from_pretrained loads.

A small model of each entry's class, with random values, is saved by transformers. The table of what was proven, and how,
is build/transformers_mapping.txt. SHARDWRIGHT_MAPPINGS=qwen2_moe,radio runs these entries alone.
"""

import copy
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import transformers
from safetensors.torch import load_file, save_file
from shardwright import _core
from shardwright.imported import transformers_mapping
from tiny_models import classes_of, on_meta, tiny_config, tiny_model
from torch.distributed import checkpoint as dcp
from transformers import conversion_mapping, core_model_loading
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

TABLE = Path(__file__).parents[2] / "build" / "transformers_mapping.txt"
MAPPING: dict[str, list[Any]] = conversion_mapping._build_checkpoint_conversion_mapping()
ENTRIES = [name for name in os.environ.get("SHARDWRIGHT_MAPPINGS", "").split(",") if name] or list(MAPPING)

#: Entries that no model of transformers 5.23 can be made for, and why. "legacy" and "MtpModel" have tests of their own.
UNREACHABLE = {
    "mlcd_vision": "no config has that model_type",
    "xCLIPVisionModel": "no class has that name",
    "xCLIPTextModel": "no class has that name",
    "PPChart2TableModel": "no class has that name",
    "timm_wrapper": "needs the package timm",
}
OWN_TESTS = ("legacy", "MtpModel")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def expect_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def stored_in(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def unfilled(like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of their own, of other values."""
    tensors = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in like.items()}
    for tensor in tensors.values():
        tensor.reshape(-1).view(torch.uint8).fill_(0x5A)
    return tensors


def with_random_values(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def saved(model_class: Any, path: Path, config: Any = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """A small model of the class, saved by transformers; and what from_pretrained makes of that."""
    small = tiny_model(model_class).config if config is None else config
    with_random_values(model_class(copy.deepcopy(small))).save_pretrained(path)
    model, info = model_class.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model, model.state_dict()


def used_of(entry: str, model: Any, names: list[str]) -> str:
    """How many of the entry's renamings and conversions have a part in these names."""
    mapping = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    in_model = model.state_dict()
    for name in names:
        core_model_loading.rename_source_key(name, renamings, converters, model.base_model_prefix, in_model)
    used = {tuple(one._original_source_patterns) for one in mapping if one.was_used()}
    of_entry = [tuple(one._original_source_patterns) for one in MAPPING[entry]]
    return f"{sum(one in used for one in of_entry)}/{len(of_entry)}"


RESULTS: dict[str, str] = {}


def note(entry: str, how: str, classes: str = "", used: str = "", rules: int = 0, tensors: int = 0) -> None:
    operations = Counter(
        type(operation).__name__
        for one in MAPPING[entry]
        if isinstance(one, WeightConverter)
        for operation in one.operations
    )
    listed = ", ".join(f"{count} {name}" for name, count in operations.items()) or "names only"
    RESULTS[entry] = f"{entry:44} {listed:58} {classes:44} {used:>8} {rules:>6} {tensors:>8}  {how}"


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name not in (*UNREACHABLE, *OWN_TESTS)])
def test_an_entry_loads_as_from_pretrained_and_exports_as_it_was_saved(entry: str, tmp_path: Path):
    model_class = classes_of(entry)[0]
    model, theirs = saved(model_class, tmp_path / "saved")
    ours = unfilled(theirs)
    sw.load(ours, tmp_path / "saved", layout="transformers", model=model_class)
    expect_same(ours, theirs)

    sw.export(
        ours, tmp_path / "exported", template=tmp_path / "saved", layout="transformers", model=model_class
    )
    source = stored_in(tmp_path / "saved")
    expect_same(stored_in(tmp_path / "exported"), source)

    catalog = sw.read_catalog(tmp_path / "saved")
    how = "bit for bit, both ways"
    if _core.has_table(catalog, "auto", "transformers"):
        by_table = unfilled(theirs)
        sw.load(by_table, tmp_path / "saved", layout="transformers")
        expect_same(by_table, theirs)
        how += "; as the table"
    rules = _core.rows_of(transformers_mapping.imported_weight_map(catalog, model_class))
    note(entry, how, model_class.__name__, used_of(entry, model, list(source)), len(rules), len(source))


def test_legacy_names_of_norms_and_weight_norm_load_as_from_pretrained(tmp_path: Path):
    model_class = transformers.BertModel
    saved(model_class, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    legacy = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    assert any(name.endswith("gamma") for name in legacy)
    save_file(legacy, file, metadata={"format": "pt"})
    model = model_class.from_pretrained(tmp_path / "saved")
    theirs = model.state_dict()
    ours = unfilled(theirs)
    sw.load(ours, tmp_path / "saved", layout="transformers")
    expect_same(ours, theirs)
    rules = _core.rows_of(transformers_mapping.imported_weight_map(sw.read_catalog(tmp_path / "saved")))
    note("legacy", "bit for bit", "BertModel", used_of("legacy", model, list(legacy)), len(rules), len(legacy))


@pytest.mark.skipif("SHARDWRIGHT_MAPPINGS" in os.environ, reason="some entries alone")
def test_the_table_of_entries_is_written_and_lacks_none_but_those_that_nothing_can_be_made_of():
    for entry, reason in UNREACHABLE.items():
        note(entry, reason)
    lines = [RESULTS[name] for name in sorted(RESULTS)]
    proven = sum("bit for bit" in line for line in lines)
    head = f"{'entry':44} {'operations':58} {'class':44} {'used':>8} {'rules':>6} {'tensors':>8}  proven"
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join([f"{proven} of {len(MAPPING)} entries", head, *lines]) + "\n")
    print(TABLE.read_text())
    assert RESULTS.keys() == MAPPING.keys()
    assert proven == len(MAPPING) - len(UNREACHABLE)
