"""What recorded tensors say of their elements is what torch does with real ones; rows are what they say."""

import importlib.util
import random

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from shardwright import _core
from shardwright._core import NoBox
from shardwright.describe import describe
from shardwright.imported.recorded_tensor import RecordedTensor
from shardwright.imported.transformers_mapping import Row


def numbers(*shape: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.int64).reshape(shape)


def applied(step: tuple, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """One operation on all of several tensors of a shape, or on all together."""
    name, *arguments = step
    if name in ("cat", "stack"):
        return [getattr(torch, name)(tensors, *arguments)]
    if name in ("chunk", "split", "unbind"):
        return [part for tensor in tensors for part in getattr(tensor, name)(*arguments)]
    return [getattr(tensor, name)(*arguments) for tensor in tensors]


def random_step(rng: random.Random, tensors: list[torch.Tensor]) -> tuple:
    shape, rank = tensors[0].shape, tensors[0].ndim
    dim = rng.randrange(rank)
    size = shape[dim]
    divisor = rng.choice([d for d in range(1, size + 1) if size % d == 0])
    order = rng.sample(range(rank), rank)
    split = [*shape[:dim], divisor, size // divisor, *shape[dim + 1 :]]
    start = rng.randrange(size)
    merged = [*shape[: dim - 1], shape[dim - 1] * size, *shape[dim + 1 :]] if dim else list(shape)
    steps = [
        ("permute", order),
        ("transpose", dim, rng.randrange(rank)),
        ("reshape", split),
        ("reshape", merged),
        ("cat", dim),
        ("stack", dim),
        ("chunk", rng.randrange(1, 4), dim),
        ("narrow", dim, start, rng.randrange(1, size - start + 1)),
        ("select", dim, start),
        ("unsqueeze", dim),
        ("squeeze",),
        ("flatten",),
        ("unbind", dim),
        ("split", rng.randrange(1, size + 1), dim),
        ("contiguous",),
    ]
    return rng.choice([step for step in steps if not (step[0] in ("select", "unbind") and rank < 2)])


def random_chain(rng: random.Random) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Sources, what is made of them, and the same recorded: a chain of operations that boxes can say."""
    shape = [rng.choice([1, 2, 3, 4, 6, 8]) for _ in range(rng.randrange(1, 4))]
    sources = [numbers(*shape, start=1000 * i) for i in range(rng.randrange(1, 4))]
    real = list(sources)
    recorded = [RecordedTensor.of_source(f"s.{i}", shape) for i in range(len(sources))]
    for _ in range(rng.randrange(1, 7)):
        if len({tensor.shape for tensor in real}) > 1 or len(real) > 12 or real[0].ndim == 0:
            break
        step = random_step(rng, real)
        try:
            recorded = applied(step, recorded)
        except NoBox:
            break
        real = applied(step, real)
    return sources, real, recorded


@pytest.mark.parametrize("seed", range(300))
def test_a_chain_of_operations_loads_as_torch_makes_it(seed: int, tmp_path):
    rng = random.Random(seed)
    sources, real, recorded = random_chain(rng)
    save_file({f"s.{i}": source.clone() for i, source in enumerate(sources)}, tmp_path / "model.safetensors")
    catalog = sw.read_catalog(tmp_path)
    sizes: dict[str, int] = {}
    rows = []
    for i, tensor in enumerate(recorded):
        assert tensor.shape == real[i].shape
        for part in tensor.parts:
            axes, of_axes = part.axis_text()
            sizes |= of_axes
            rows.append(Row(part.source, f"n.{i}", axes))
    weight_map = _core.weight_map_of("test", "transformers", rows, sizes=sizes)
    found = {f"n.{i}": torch.full_like(tensor.contiguous(), -1) for i, tensor in enumerate(real)}
    specs = describe(found).specs
    _core.run_load(_core.plan_load(specs, catalog, weight_map, False), catalog, specs)
    for i, tensor in enumerate(real):
        assert torch.equal(found[f"n.{i}"], tensor), rows


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t * 2, "mul"),
        (lambda t: -t, "neg"),
        (lambda t: t.flip(0), "flip"),
        (lambda t: t.to(torch.float16), "to"),
        (lambda t: torch.einsum("ij->ji", t), "einsum"),
        (lambda t: t[torch.tensor([0, 1])], "Tensor"),
        (lambda t: t.narrow(0, 1, 4).reshape(6, 4), "reshapes to"),
        (lambda t: t.reshape(36).narrow(0, 3, 6).reshape(2, 3), "cuts"),
    ],
)
def test_what_makes_no_boxes_is_named(call, says: str):
    with pytest.raises(NoBox, match=says):
        call(RecordedTensor.of_source("s", [6, 6]))


def test_indices_and_steps_are_recorded_too(tmp_path):
    source = numbers(6, 8)
    recorded = RecordedTensor.of_source("s", [6, 8])
    for call in (
        lambda t: t[::2],
        lambda t: t[..., 1::4],
        lambda t: t[2],
        lambda t: t[1:5, None, -1],
        lambda t: t.T,
        lambda t: t.mT.unflatten(0, (2, -1)),
        lambda t: t.view(-1),
    ):
        made = call(recorded)
        assert made.shape == call(source).shape
    assert recorded[::2].parts[0].axis_text() == ("(o 0/2) i -> o i", {})
    assert recorded.parts[0].axis_text() == ("", {})


def test_what_has_no_elements_is_no_part_of_anything():
    empty = RecordedTensor.of_source("s", [4, 0])
    assert torch.cat([empty, empty]).reshape(0, 8).parts == []
    assert RecordedTensor.of_source("s", [6, 6]).narrow(0, 3, 0).parts == []
    with pytest.raises(ValueError, match="s: expected elements, found none"):
        _core.RecordedPart.whole("s", [4, 0])


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_without_transformers_a_family_without_a_table_is_an_error_that_says_what_to_install(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    for arguments in ({}, {"model": "unheard_of"}):
        with pytest.raises(ValueError, match="not known.*or install transformers, 5 or later"):
            sw.load({"w": torch.zeros(2)}, tmp_path, layout="transformers", **arguments)
    with pytest.raises(ValueError, match=r'pip install "transformers>=5"'):
        sw.load({"w": torch.zeros(2)}, tmp_path, layout="transformers", model=object())
    with pytest.raises(ValueError, match="model: expected a family"):
        sw.load({"w": torch.zeros(2)}, tmp_path, model=object())
