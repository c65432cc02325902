"""Random families, layouts, meshes of both sides, placements and encodings: what arrives are the slices of the files
that `sw.export` writes, read by safetensors and cut by plain torch; each byte goes once."""

import math
import tempfile
from pathlib import Path

import pytest
import shardwright as sw
import torch
from handed_over import exported
from hypothesis import event, given
from hypothesis import strategies as st
from placements import held_indices, take
from refit_ranks import Side, hand_over, random_engine, request_of
from shardwright import _core
from test_property import MESHES, fake_mesh, sharded
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

FORMS = [(one.name, form) for one in _core.families() for form in _core.sample_forms(one.name)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint of each family and form, made when it is asked for."""
    made: dict[tuple[str, str], Path] = {}

    def source_of(family: str, form: str) -> Path:
        if (family, form) not in made:
            made[family, form] = tmp_path_factory.mktemp("family") / "from"
            sw.generate(made[family, form], family=family, form=form)
        return made[family, form]

    return source_of


def on_mesh(whole: dict[str, torch.Tensor], mesh, shape, placements: dict) -> dict[str, torch.Tensor]:
    state = {}
    for fqn, tensor in whole.items():
        lies = placements[fqn]
        held = held_indices(tuple(tensor.shape), shape, tuple(mesh.get_coordinate()), lies)
        state[fqn] = sharded(take(tensor, held).clone(), tensor, mesh, lies)
    return state


@given(data=st.data())
def test_engines_get_slices_of_the_files(sources, data):
    family, form = data.draw(st.sampled_from(FORMS))
    source = sources(family, form)
    layout = data.draw(
        st.sampled_from([*next(o for o in _core.families() if o.name == family).layouts, "huggingface"])
    )
    encodings = [None, "template", "mxfp8", "block_fp8", "mxfp4-modelopt", "nvfp4-modelopt"]
    quantization = data.draw(st.sampled_from(encodings))
    shape = data.draw(st.sampled_from([mesh for mesh in MESHES if len(mesh) < 3]))
    engine_ranks = data.draw(st.integers(1, 8))
    overlap = data.draw(st.booleans())
    whole = sw.empty_state_dict(source, layout=layout)
    sw.load(whole, source, layout=layout)
    placements = {}
    for fqn, tensor in whole.items():
        dims = st.integers(0, tensor.ndim - 1) if tensor.ndim else st.nothing()
        one = (
            st.just(Replicate())
            | dims.map(Shard)
            | st.builds(_StridedShard, dims, split_factor=st.integers(1, 3))
        )
        placements[fqn] = data.draw(st.lists(one, min_size=len(shape), max_size=len(shape)))
    with tempfile.TemporaryDirectory() as folder:
        options = {"template": source, "layout": layout}
        weights = ["*_proj.weight", "*.w?.weight"] if quantization in _core.quantizations() else None
        try:
            sw.export(
                whole, Path(folder, "to"), quantization=quantization, quantized_weights=weights, **options
            )
        except (sw.PlanError, ValueError):  # what cannot be exported so cannot be handed over so
            quantization, weights = None, None
            try:
                sw.export(whole, Path(folder, "to"), **options)
            except (sw.PlanError, ValueError):
                event("cannot be exported so")
                return
        files = {
            name: tensor
            for name, tensor in exported(Path(folder, "to")).items()
            if not (tensor.dtype == torch.uint8 and tensor.ndim == 4) and tensor.dtype != torch.int32
        }
    sides = []
    for rank in range(math.prod(shape)):
        with fake_mesh(shape, rank) as mesh:
            side = Side(on_mesh(whole, mesh, shape, placements))
            side.describe()
        sides.append(side)
    engine = random_engine(files, engine_ranks, seed=data.draw(st.integers(0, 1 << 16)))
    for rank, expected in enumerate(engine):
        if overlap and rank < len(sides):
            sides[rank].engine = expected.engine
        else:
            sides.append(Side(None, expected.engine))
    plans = [_core.PlannedRefit() for _ in sides]
    nodes = data.draw(st.sampled_from([("",), ("one",), ("one", "other"), ("one", "")]))
    request = request_of(source, quantization or "none", layout=layout, weights=weights)
    for _ in range(2):  # as it is planned, and with the plan that is kept
        for expected in engine:
            expected.clear()
        for outcome in hand_over(sides, request, plans, nodes):
            if isinstance(outcome, Exception):
                raise outcome
            outcome.expect_success()
            assert nodes != ("one",) or outcome.bytes_in_memory == outcome.bytes_sent + outcome.bytes_received
        assert [expected.wrong() for expected in engine] == [[]] * engine_ranks
    event(f"nodes {nodes}")
    event(f"handed over as {quantization}")
    received = sum(sum(plan.bytes_from.values()) for plan in plans)
    assert received == sum(value.nbytes for expected in engine for value in expected.values)
    assert received == sum(sum(plan.bytes_to.values()) for plan in plans)
