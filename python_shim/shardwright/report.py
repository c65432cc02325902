"""What a load or a save did."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from shardwright import _core


def _row_of(what: str, names: list[str]) -> list[tuple[str, str]]:
    """How many names there are, and some of them; no row where there are none."""
    groups = _core.grouped_names(names)
    more = " …" if len(groups) > 3 else ""
    return [(what, f"{len(names):,}: {'; '.join(groups[:3])}{more}")] if names else []


def _row_of_rounded(rounded: dict[str, str]) -> list[tuple[str, str]]:
    return _row_of("rounded", [f"{name}: {cast}" for name, cast in rounded.items()])


def figures_of(core: Any, report: type[Any]) -> dict[str, Any]:
    """What the engine's report has under the names of this one."""
    names = {one.name for one in dataclasses.fields(report)} - {"seconds", "rounded", "codes_alone"}
    return {name: getattr(core, name) for name in sorted(names) if hasattr(core, name)}


@dataclass(frozen=True)
class LoadReport:
    """What a load did on this rank. Of what torch's own reader did, figures that it does not keep are 0.

    ``seconds`` has a value for each phase: ``catalog`` (headers and index), ``plan``, ``read`` and ``decode`` (thread
    seconds divided by the number of threads, so that with all threads busy the phases add up to the wall time), and
    ``total``, the wall time from the catalog on; and ``together``, that of what was read with other ranks, if any was.
    """

    tensors: int = 0  #: HF tensors, scales included, of which this rank needed at least a part
    bytes_needed: int = 0  #: that those parts take in the files
    bytes_read: int = 0  #: by this rank, from files
    bytes_received: int = 0  #: from ranks that read together with this one (``cooperative``)
    bytes_checked: int = 0  #: that were compared with the checkpoint's checksums
    bytes_written: int = 0  #: to the destination tensors
    read_requests: int = 0  #: to the operating system
    #: boxes, a staging buffer at most, that were read with the gaps between their rows
    boxes_with_gaps: int = 0
    boxes_in_pieces: int = 0  #: and those that were read row by row, as that cost less
    peak_staging_bytes: int = 0  #: CPU memory between files and shards, all threads; pinned for CUDA tensors
    devices: int = 0  #: CUDA devices that were written to
    peak_device_bytes: int = 0  #: memory of a device beside the tensors, where it was most
    bytes_to_devices: int = 0  #: copied there, as they are in the files
    bytes_gpu_direct: int = 0  #: of those read, straight into devices, by GPUDirect Storage
    device_batches: int = 0  #: of tiles that kernels decoded and placed there
    files: int = 0  #: that something was read from
    files_direct: int = 0  #: of them, past the page cache (O_DIRECT)
    files_remote: int = 0  #: of them, objects at an address
    files_io_uring: int = 0  #: of them, by io_uring; the others by pread
    cooperation: str = ""  #: how ranks have read together, and why, in words; empty if they were not to
    threads: int = 0
    instruction_set: str = ""  #: of the decoding kernels
    seconds: dict[str, float] = field(default_factory=dict)
    # What was left out, so that nothing is silent:
    #: what the checkpoint has and no tensor (or object) takes
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  #: HF tensors that no rule knows (strict=False)
    not_loaded: list[str] = field(default_factory=list)  #: tensors without a source (allow_partial_load)
    #: tensors that files lack as they are zero, and were set so
    zeroed: list[str] = field(default_factory=list)
    #: packed codes (dtype="packed") of which this rank does not hold all the scales, as a cut falls inside a block
    codes_alone: list[str] = field(default_factory=list)
    #: tensors of a dtype that cannot hold all numbers of the stored one: name → "F32 -> BF16". Decoding is no cast.
    rounded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        core: Any,
        catalog_seconds: float,
        plan_seconds: float,
        rounded: dict[str, str],
        cooperation: str = "",
    ) -> LoadReport:
        seconds = {
            "catalog": catalog_seconds,
            "plan": plan_seconds,
            "read": core.read_seconds,
            "decode": core.decode_seconds,
            "together": core.together_seconds,
            "total": catalog_seconds + plan_seconds + core.total_seconds,
        }
        if core.together_seconds == 0:
            del seconds["together"]
        figures = figures_of(core, cls)
        return cls(**figures, seconds=seconds, rounded=rounded, cooperation=cooperation)

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes read over total wall time, in 10^9 bytes a second."""
        return self.bytes_read / self.seconds["total"] / 1e9 if self.seconds["total"] > 0 else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """The report as (what, figure) rows for a table."""
        rows = [
            ("tensors", f"{self.tensors:,}"),
            ("files, direct, io_uring", f"{self.files:,}, {self.files_direct:,}, {self.files_io_uring:,}"),
            ("bytes needed", f"{self.bytes_needed:,}"),
            ("bytes read, received", f"{self.bytes_read:,}, {self.bytes_received:,}"),
            ("bytes checked, written", f"{self.bytes_checked:,}, {self.bytes_written:,}"),
            ("read requests", f"{self.read_requests:,}"),
            ("boxes with gaps, in pieces", f"{self.boxes_with_gaps:,}, {self.boxes_in_pieces:,}"),
            ("threads, kernels", f"{self.threads}, {self.instruction_set}"),
            ("peak staging bytes", f"{self.peak_staging_bytes:,}"),
        ]
        if self.cooperation:
            rows.insert(4, ("read together", self.cooperation))
        if self.devices > 0:
            rows += [
                ("CUDA devices, batches", f"{self.devices}, {self.device_batches:,}"),
                ("bytes to devices", f"{self.bytes_to_devices:,}"),
                ("peak device bytes", f"{self.peak_device_bytes:,}"),
            ]
        if self.bytes_gpu_direct > 0:
            rows.append(("bytes by GPUDirect", f"{self.bytes_gpu_direct:,}"))
        rows += [(f"seconds, {phase}", f"{seconds:.4f}") for phase, seconds in self.seconds.items()]
        rows.append(("GB/s read", f"{self.gigabytes_per_second:.2f}"))
        for what in ("unused", "unknown", "not_loaded", "zeroed", "codes_alone"):
            rows += _row_of(what.replace("_", " "), getattr(self, what))
        return rows + _row_of_rounded(self.rounded)

    def __str__(self) -> str:
        return "\n".join(f"{what:<20} {figure}" for what, figure in self.rows())


def with_what_was_left_out(report: LoadReport, metadata: Any, plan: Any, planner: Any) -> LoadReport:
    """The report with the names that the checkpoint has and nobody asked for, and the other way round."""
    stored = metadata.state_dict_metadata
    asked = getattr(planner, "state_dict", None)
    if asked is None:
        asked = {item.storage_index.fqn for item in plan.items}
    return dataclasses.replace(
        report,
        unused=[name for name in stored if name not in asked],
        not_loaded=[name for name in asked if name not in stored],
    )


@dataclass
class SaveReport:
    """What a save did on this rank.

    ``seconds`` has a value for each phase. Of an export: ``plan``, ``encode`` (encoding, converting and regrouping, or
    waiting for devices that do) and ``write`` (thread seconds divided by the number of threads), ``sync`` (flushing to
    the device); of a sharded checkpoint ``write`` and ``flush``. And ``total``, the wall time until this rank had
    written its share.
    """

    tensors: int = 0  #: stored tensors (or chunks), scales included, of which this rank wrote at least a part
    objects: int = 0  #: and pickled objects, in a sharded checkpoint
    files: int = 0  #: that this rank wrote to
    bytes_needed: int = 0  #: that its parts and headers take in the files
    bytes_written: int = 0  #: headers included
    write_requests: int = 0  #: to the operating system; of an export
    #: CPU memory: to the files (pinned for devices), copies for asynchronous saving
    peak_staging_bytes: int = 0
    devices: int = 0  #: CUDA devices that were read from
    peak_device_bytes: int = 0  #: memory of a device beside the tensors, where it was most
    bytes_from_devices: int = 0  #: copied from there, encoded as the files have them
    device_batches: int = 0  #: in which that was done
    threads: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  #: the template's tensors that were not written
    #: of an export, over all ranks: tensors stored in a dtype that cannot hold all of their numbers, by their names in
    #: the state dict: name → "F32 -> BF16". What ``quantization`` encodes is not among them.
    rounded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, core: Any, total_seconds: float) -> SaveReport:
        seconds = {
            "plan": core.plan_seconds,
            "encode": core.encode_seconds,
            "write": core.write_seconds,
            "sync": core.sync_seconds,
            "total": total_seconds,
        }
        return cls(**figures_of(core, cls), seconds=seconds, rounded=dict(core.rounded))

    def rows(self) -> list[tuple[str, str]]:
        """The report as (what, figure) rows for a table."""
        rows = [
            ("tensors", f"{self.tensors:,}"),
            ("files", f"{self.files:,}"),
            ("bytes needed", f"{self.bytes_needed:,}"),
            ("bytes written", f"{self.bytes_written:,}"),
            ("write requests", f"{self.write_requests:,}"),
            ("threads", f"{self.threads}"),
            ("peak staging bytes", f"{self.peak_staging_bytes:,}"),
        ]
        if self.devices > 0:
            rows += [
                ("CUDA devices, batches", f"{self.devices}, {self.device_batches:,}"),
                ("bytes from devices", f"{self.bytes_from_devices:,}"),
                ("peak device bytes", f"{self.peak_device_bytes:,}"),
            ]
        rows += [(f"seconds, {phase}", f"{seconds:.4f}") for phase, seconds in self.seconds.items()]
        return rows + _row_of("left out", self.left_out) + _row_of_rounded(self.rounded)

    def __str__(self) -> str:
        return "\n".join(f"{what:<20} {figure}" for what, figure in self.rows())
