"""A model with fewer layers than its checkpoint computes something else: a load into it is refused, for every family.

Which layer a native tensor is of is read off its name here.
"""

import json
import re
from pathlib import Path

import pytest
import shardwright as sw
import torch
from test_generated_families import CASES, filled

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
ASIDE = re.compile(r"vision|visual|audio|mtp")
#: What a pipeline has after its last layer, in the spelling of each trainer.
ENDS = re.compile(
    r"lm_head|(?:^|\.)(?:norm|final_layernorm|norm_f|output)\.|hc_head|\bhead\.|output_norm|mtp"
)
#: Of layers, in the spelling of each trainer.
PARTS = re.compile(r"proj|attention\.|attn\.")


def layer_of(name: str) -> int | None:
    found = None if ASIDE.search(name) else LAYER.search(name)
    return int(found[1]) if found else None


def number_of_layers(path: Path) -> int:
    config = json.loads((path / "config.json").read_text())
    return int((config.get("text_config") or config)["num_hidden_layers"])


@pytest.mark.parametrize(
    "family, form, layout", CASES, ids=[f"{name}, {form}, {layout}" for name, form, layout in CASES]
)
def test_the_last_layers_are_not_left_out_silently(family: str, form: str, layout: str, tmp_path: Path):
    sw.generate(tmp_path, family=family, form=form)
    whole = sw.empty_state_dict(tmp_path, layout=layout)
    last = number_of_layers(tmp_path) - 1
    cut = {name: tensor for name, tensor in filled(whole).items() if (layer_of(name) or 0) < last}
    assert len(cut) < len(whole)
    with pytest.raises(sw.PlanError, match=rf"layers {last}\b.*num_hidden_layers {last + 1}.*strict=False"):
        sw.load(cut, tmp_path, layout=layout)
    assert all(bool((tensor == 7).all()) for tensor in cut.values() if tensor.is_floating_point())
    report = sw.load(cut, tmp_path, layout=layout, strict=False)
    assert len(report.unused) > 0

    # A stage of a pipeline holds the first layers without what comes after the last, ...
    stage = {
        name: tensor for name, tensor in cut.items() if layer_of(name) is not None or not ENDS.search(name)
    }
    sw.load(stage, tmp_path, layout=layout)
    # ... and whoever asks for parts of layers gets them.
    some = {name: tensor for name, tensor in cut.items() if not PARTS.search(name)}
    assert len(some) < len(cut)
    sw.load(some, tmp_path, layout=layout)


def test_a_checkpoint_whose_config_counts_no_layers_has_no_cut(tmp_path: Path):
    sw.generate(tmp_path, family="qwen3")
    config = json.loads((tmp_path / "config.json").read_text())
    last = config.pop("num_hidden_layers") - 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = sw.empty_state_dict(tmp_path)
    sw.load({name: tensor for name, tensor in whole.items() if (layer_of(name) or 0) < last}, tmp_path)


def test_a_rank_with_both_ends_and_the_last_layer_is_a_stage(tmp_path: Path):
    """A stage that has both ends has the last layer, as with two stages of a rank in the shape of a V."""
    sw.generate(tmp_path, family="qwen3")
    last = number_of_layers(tmp_path) - 1
    whole: dict[str, torch.Tensor] = sw.empty_state_dict(tmp_path)
    assert last >= 1
    sw.load({name: tensor for name, tensor in whole.items() if layer_of(name) in (None, last)}, tmp_path)
