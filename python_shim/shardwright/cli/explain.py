"""What becomes of one tensor in a plan."""

from __future__ import annotations

from typing import Any

from shardwright.cli.answer import Answer


def explain(name: str, plan: Any, catalog: Any, specs: list[Any]) -> Answer:
    """What a rank reads of a tensor, from where, and where it goes."""
    tensors = catalog.tensors
    spec = next((spec for spec in specs if spec.fqn == name), None)
    if spec is None and name not in {tensor.name for tensor in tensors}:
        raise ValueError(
            f"--explain {name}: expected a tensor of the trainer or of the checkpoint, found neither"
        )
    concerned = [
        transfer
        for transfer in plan.transfers
        if name in (specs[transfer.destination].fqn, tensors[transfer.source].name)
        or (transfer.scales >= 0 and name == tensors[transfer.scales].name)
    ]
    facts: dict[str, Any] = {
        "tensor": name,
        "transfers": [transfer_facts(one, tensors, catalog.files, specs) for one in concerned],
    }
    lines = []
    if spec is not None:
        facts |= {"dtype": spec.dtype, "local_shape": spec.local_shape, "global_shape": spec.global_shape}
        lines.append(f"{name}: {spec.dtype} {spec.local_shape} of {spec.global_shape}")
        for box in spec.boxes:
            lines.append(f"  this rank holds {_box(box.offset, box.size)}, at {box.local_offset} of its own")
    elif name in plan.unused or name in plan.unknown:
        facts["not_loaded"] = "no rule knows it" if name in plan.unknown else "the trainer lacks it"
        lines.append(f"{name}: not loaded; {facts['not_loaded']}")
    for transfer in concerned:
        lines += _lines_of(transfer, tensors, catalog.files, specs)
    if not concerned:
        lines.append("this rank reads nothing of it")
    return Answer(facts, "\n".join(lines))


def transfer_facts(transfer: Any, tensors: list[Any], files: list[Any], specs: list[Any]) -> dict[str, Any]:
    source = tensors[transfer.source]
    facts: dict[str, Any] = {
        "source": source.name,
        "file": files[source.file].name,
        "source_offset": transfer.source_offset,
        "size": transfer.source_size,
        "destination": specs[transfer.destination].fqn,
        "destination_offset": transfer.destination_offset,
        "axes": transfer.axes,
    }
    if transfer.scales >= 0:
        facts["scales"] = tensors[transfer.scales].name
        facts["scale_offset"] = transfer.scale_offset
        facts["scale_size"] = transfer.scale_size
    return facts


def _lines_of(transfer: Any, tensors: list[Any], files: list[Any], specs: list[Any]) -> list[str]:
    source = tensors[transfer.source]
    size = [1] * len(transfer.destination_offset)
    for axis, length in zip(transfer.axes, transfer.source_size, strict=True):
        size[axis] = length
    turned = "" if transfer.axes == sorted(transfer.axes) else ", transposed"
    lines = [
        f"{source.dtype} {source.name} {_box(transfer.source_offset, transfer.source_size)} "
        f"in {files[source.file].name}"
    ]
    if transfer.scales >= 0:
        scales = tensors[transfer.scales].name
        lines.append(f"  scaled by {scales} {_box(transfer.scale_offset, transfer.scale_size)}")
    lines.append(f"  to {specs[transfer.destination].fqn} {_box(transfer.destination_offset, size)}{turned}")
    return lines


def _box(offset: list[int], size: list[int]) -> str:
    bounds = (f"{begin}:{begin + length}" for begin, length in zip(offset, size, strict=True))
    return f"[{', '.join(bounds)}]"
