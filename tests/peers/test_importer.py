"""Every entry of transformers' conversion mapping, made into rules: what they load is what from_pretrained loads.

A small model of each entry's class, with random values, is saved by transformers. The table of what was proven, and
how, is build/transformers_mapping.txt. A sample is run, with each entry that regroups tensors by operations of its own;
SHARDWRIGHT_MAPPINGS=all runs all, in some five minutes, SHARDWRIGHT_MAPPINGS=qwen2_moe,radio those two.
"""

import copy
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import transformers
from mapped_models import classes_of, tiny_model
from safetensors.torch import load_file, save_file
from shardwright import _core
from shardwright.describe import describe
from shardwright.imported import transformers_mapping
from transformers import conversion_mapping, core_model_loading
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.modeling_layers import MtpModel
from transformers.modeling_utils import LoadStateDictConfig

TABLE = Path(__file__).parents[2] / "build" / "transformers_mapping.txt"
MAPPING: dict[str, list[Any]] = conversion_mapping._build_checkpoint_conversion_mapping()


def entries_to_run() -> list[str]:
    asked = os.environ.get("SHARDWRIGHT_MAPPINGS", "")
    if asked:
        return list(MAPPING) if asked == "all" else asked.split(",")
    alike: dict[tuple[str, ...], str] = {}
    for name, entry in MAPPING.items():
        alike.setdefault(tuple(str(one) for one in entry if isinstance(one, WeightConverter)), name)
    return sorted({*alike.values(), *list(MAPPING)[::10]})


ENTRIES = entries_to_run()

#: Entries that no model of transformers 5.23 can be made for, and why. "legacy" and "MtpModel" have tests of their own.
UNREACHABLE = {
    "mlcd_vision": "no config has that model_type",
    "xCLIPVisionModel": "no class has that name",
    "xCLIPTextModel": "no class has that name",
    "PPChart2TableModel": "no class has that name",
    "timm_wrapper": "needs the package timm",
}
OWN_TESTS = ("legacy", "MtpModel")

#: Classes without a head, whose names are without "model.": tables are for whole models.
TABLE_REFUSES = ("deepseek_v4", "Mistral3Model")

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


def saved(model: Any, path: Path, with_prefixes: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """Saves a model's class and config with random values as transformers does, and returns what from_pretrained makes
    of that. With prefixes: as if it had been loaded from a file that has all prefixes which its mapping takes away."""
    made = with_random_values(type(model)(copy.deepcopy(model.config)))
    if with_prefixes:
        made._weight_conversions = conversion_mapping.get_model_conversion_mapping(made, add_legacy=False)
    made.save_pretrained(path)
    return loaded_by_transformers(type(model), path)


def loaded_by_transformers(model_class: Any, path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    if model_class is transformers.JevForDecision:  # which cannot tell
        model = model_class.from_pretrained(path)
    else:
        model, info = model_class.from_pretrained(path, output_loading_info=True)
        assert not any(info.values()), info
    return model, model.state_dict()


def small_model(entry: str) -> Any:
    """Of the classes that an entry stands for, a model on the meta device that has most use of it."""
    models, reasons = [], []
    for model_class in classes_of(entry)[:6]:
        try:
            models.append(tiny_model(model_class))
        except ValueError as error:
            reasons.append(str(error))
    assert models, reasons
    names = [list(transformers_mapping.saved_shapes(model)) for model in models]
    uses = [used_of(entry, model, saved_as) for model, saved_as in zip(models, names, strict=True)]
    return max(zip(models, uses, strict=True), key=lambda pair: pair[1])[0]


def used_of(entry: str, model: Any, names: Iterable[str]) -> tuple[int, int]:
    """How many of the entry's conversions, and of its renamings, have a part in these names."""
    mapping = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    in_model = model.state_dict()
    for name in names:
        core_model_loading.rename_source_key(name, renamings, converters, model.base_model_prefix, in_model)
    used = {identity(one) for one in mapping if one.was_used()}
    return tuple(
        sum(identity(one) in used for one in MAPPING[entry] if isinstance(one, kind))
        for kind in (WeightConverter, WeightRenaming)
    )


def identity(one: Any) -> tuple[str, ...]:
    return (type(one).__name__, *one._original_source_patterns, *one._original_target_patterns)


RESULTS: dict[str, str] = {}


def note(
    entry: str, how: str, model: Any = None, names: Iterable[str] = (), rules: int = 0, tensors: int = 0
) -> None:
    converters = sum(isinstance(one, WeightConverter) for one in MAPPING[entry])
    used = used_of(entry, model, names) if model is not None else (0, 0)
    operations = Counter(
        type(operation).__name__
        for one in MAPPING[entry]
        if isinstance(one, WeightConverter)
        for operation in one.operations
    )
    listed = ", ".join(f"{count} {name}" for name, count in operations.items()) or "names only"
    of = (f"{used[0]}/{converters}", f"{used[1]}/{len(MAPPING[entry]) - converters}")
    class_name = type(model).__name__ if model is not None else "-"
    RESULTS[entry] = (
        f"{entry:44} {listed:58} {class_name:44} {of[0]:>5} {of[1]:>6} {rules:>6} {tensors:>8}  {how}"
    )


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name not in (*UNREACHABLE, *OWN_TESTS)])
def test_an_entry_loads_as_from_pretrained_and_exports_as_it_was_saved(entry: str, tmp_path: Path):
    small = small_model(entry)
    model_class = type(small)
    how = "bit for bit, both ways"
    try:
        model, theirs = saved(small, tmp_path / "saved", with_prefixes=True)
    except (AssertionError, RuntimeError):  # transformers does not load what its own mapping, reversed, says
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        model, theirs = saved(small, tmp_path / "saved", with_prefixes=False)
        how += "; prefixes as saved from scratch"
    ours = unfilled(theirs)
    sw.load(ours, tmp_path / "saved", layout="transformers", model=model_class)
    expect_same(ours, theirs)

    sw.export(
        ours, tmp_path / "exported", template=tmp_path / "saved", layout="transformers", model=model_class
    )
    source = stored_in(tmp_path / "saved")
    expect_same(stored_in(tmp_path / "exported"), source)

    catalog = sw.read_catalog(tmp_path / "saved")
    if _core.has_table(catalog, "auto", "transformers"):
        by_table = unfilled(theirs)
        if entry in TABLE_REFUSES:
            with pytest.raises(sw.PlanError):
                sw.load(by_table, tmp_path / "saved", layout="transformers")
        else:
            sw.load(by_table, tmp_path / "saved", layout="transformers")
            expect_same(by_table, theirs)
            how += "; as the table"
    rules = _core.rows_of(transformers_mapping.imported_weight_map(catalog, model_class))
    note(entry, how, model, source, len(rules), len(source))


def stacked_as_released(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """NeMo's form of experts, [experts, in, out], in place of a matrix for each."""
    released = dict(stored)
    stacks: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in stored:
        if found := re.fullmatch(r"(.*\.mixer\.experts)\.(\d+)\.(up|down)_proj\.weight", name):
            stacks.setdefault((found[1], found[3]), []).append((int(found[2]), name))
    for (prefix, which), names in stacks.items():
        stack = torch.stack([released.pop(name).T for _, name in sorted(names)])
        released[f"{prefix}.{'gate_and_up_projs' if which == 'up' else 'down_projs'}"] = stack.contiguous()
    assert len(released) < len(stored)
    return released


def gamma_and_beta(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in stored.items()
    }


@pytest.mark.parametrize(
    ("entry", "model_name", "rewritten"),
    [("nemo_speechlm", "nemo_speechlm", stacked_as_released), ("legacy", "BertModel", gamma_and_beta)],
)
def test_released_forms_that_transformers_reads_but_does_not_write(
    entry: str, model_name: str, rewritten: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
):
    small = tiny_model(classes_of(model_name)[0])
    model_class = type(small)
    saved(small, tmp_path / "saved", with_prefixes=False)
    stored = rewritten(stored_in(tmp_path / "saved"))
    for file in (tmp_path / "saved").glob("*.safetensors*"):
        file.unlink()
    save_file(stored, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    model, theirs = loaded_by_transformers(model_class, tmp_path / "saved")
    ours = unfilled(theirs)
    sw.load(ours, tmp_path / "saved", layout="transformers", model=model_class)
    expect_same(ours, theirs)
    sw.export(
        ours, tmp_path / "exported", template=tmp_path / "saved", layout="transformers", model=model_class
    )
    expect_same(stored_in(tmp_path / "exported"), stored)
    rules = _core.rows_of(
        transformers_mapping.imported_weight_map(sw.read_catalog(tmp_path / "saved"), model_class)
    )
    note(entry, "bit for bit, both ways, as released", model, stored, len(rules), len(stored))


def test_mtp_layers_load_as_by_transformers_own_loader(tmp_path: Path):
    """MtpModel is made of a main model, not of a config: the conversion takes the model itself."""
    main = transformers.DeepseekV3ForCausalLM(tiny_model(transformers.DeepseekV3ForCausalLM).config)
    model = with_random_values(MtpModel(main, 1))
    model.requires_grad_(False)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored = {
        re.sub(
            r"^layers\.0\.(?:mtp_block\.)?", "model.layers.0.", name.replace("post_norm", "shared_head.norm")
        ): t
        for name, t in expected.items()
        if name.startswith("layers.")
    }
    for tensor in model.state_dict().values():
        tensor.zero_()
    mapping = conversion_mapping.get_model_conversion_mapping(model)
    info, _ = core_model_loading.convert_and_load_state_dict_in_model(
        model, dict(stored), LoadStateDictConfig(weight_mapping=mapping), None
    )
    assert not (info.unexpected_keys | info.mismatched_keys) and not info.conversion_errors
    theirs = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("layers.")}
    expect_same(theirs, {name: tensor for name, tensor in expected.items() if name.startswith("layers.")})

    save_file(stored, tmp_path / "model.safetensors")
    catalog = sw.read_catalog(tmp_path)
    conversion = transformers_mapping.converted(model, transformers_mapping.weight_shapes(catalog))
    assert not (conversion.problems or conversion.unknown)
    weight_map = transformers_mapping.weight_map_of(catalog, conversion, "mtp")
    ours = unfilled(theirs)
    specs = describe(ours).specs
    _core.run_load(_core.plan_load(specs, catalog, weight_map), catalog, specs)
    expect_same(ours, theirs)
    note("MtpModel", "bit for bit", model, stored, len(_core.rows_of(weight_map)), len(stored))


def test_the_table_of_entries_is_written_and_lacks_none_but_those_that_nothing_can_be_made_of():
    for entry, reason in UNREACHABLE.items():
        note(entry, reason)
    lines = [RESULTS[name] for name in sorted(RESULTS)]
    proven = sum("bit for bit" in line for line in lines)
    head = f"{'entry':44} {'operations':58} {'class':44} {'ops':>5} {'names':>6} {'rules':>6} {'tensors':>8}  proven"
    TABLE.parent.mkdir(exist_ok=True)
    found = f"proven: {proven} of {len(RESULTS)} entries run, of {len(MAPPING)} in transformers' mapping"
    TABLE.write_text("\n".join([found, head, *lines]) + "\n")
    print(TABLE.read_text())
    assert RESULTS.keys() >= set(ENTRIES) - {"legacy", "MtpModel"}
    assert proven == len(RESULTS) - len(UNREACHABLE)
    if len(ENTRIES) == len(MAPPING):
        assert proven == len(MAPPING) - len(UNREACHABLE)
