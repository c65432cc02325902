"""What bench/peers.py has measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEGABYTE = 1e6


def table(result: dict[str, Any]) -> str:
    lines = table_of_encodings(result) if "encodings" in result else table_of_ways(result)
    if "scaling" in result:
        lines += table_of_sizes(result["scaling"])
    if "ranks_with_one_thread_each" in result:
        lines += table_of_ranks(result["ranks_with_one_thread_each"])
    if "cold" in result:
        cold, best = result["cold"], result["cold"]["best_reading"]
        lines += [
            "",
            "| cold | seconds |",
            "| --- | --- |",
            f"| shardwright | {cold['shardwright']['median']:.3f} |",
            f"| reading the files at best: {best} | {cold['reading'][best]:.3f} |",
        ]
    return "\n".join(lines)


def table_of_ways(result: dict[str, Any]) -> list[str]:
    ways, ours = result["ways"], result["ways"]["shardwright"]["median"]
    lines = [
        f"{result['machine']}; {result['threads']} threads; medians of {result['runs']}; "
        f"{result['checkpoint_bytes']:,} bytes of files, warm",
        "",
        "| way to load | seconds | times ours | seconds of processors | MB above the destination | "
        "MB read (mapped files do not count) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, found in ways.items():
        memory = found["memory_above_destination"] / MEGABYTE
        read = found["bytes_read"] / MEGABYTE
        if found.get("fraction", 1) < 1:
            way += f" (from {100 * found['fraction']:.0f} % of the bytes)"
        lines.append(
            f"| {way} | {found['median']:.3f} | {found['median'] / ours:.2f} | {found['processor_seconds']:.2f} | "
            f"{memory:,.0f} | {read:,.0f} |"
        )
    if "read limit" in ways and "fill limit" in ways:
        limit = ways["read limit"]["median"] + ways["fill limit"]["median"]
        lines.append(f"| read + fill limit | {limit:.3f} | {limit / ours:.2f} | | | |")
    return lines


def table_of_encodings(result: dict[str, Any]) -> list[str]:
    """A load of each encoding, beside what its tool takes to decode alone and what reading and filling take."""
    lines = [
        f"{result['machine']}; {result['threads']} threads; medians of {result['runs']}; warm",
        "",
        "| encoding | MB of files | seconds | times read + fill limit | MB above the destination | its tool | "
        "seconds of the tool | times ours |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, found in result["encodings"].items():
        ways = found["ways"]
        ours, tool = ways["shardwright"], ways.get(found["tool"])
        limit = ways["read limit"]["median"] + ways["fill limit"]["median"]
        beside = f"{found['tool']} | | "
        if tool is not None:
            part = f" (from {100 * tool['fraction']:.0f} % of the bytes)" if tool["fraction"] < 1 else ""
            beside = f"{found['tool']}{part} | {tool['median']:.2f} | {tool['median'] / ours['median']:.1f} "
        lines.append(
            f"| `{name}` | {found['checkpoint_bytes'] / MEGABYTE:,.0f} | {ours['median']:.3f} | "
            f"{ours['median'] / limit:.2f} | {ours['memory_above_destination'] / MEGABYTE:,.0f} | "
            f"{beside}|"
        )
    return lines


def table_of_sizes(scaling: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "| checkpoint | bytes | seconds | GB/s | MB above the destination |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in scaling.items():
        size, seconds = found["checkpoint_bytes"], found["median"]
        memory = found["memory_above_destination"] / MEGABYTE
        lines.append(f"| {name} | {size:,} | {seconds:.3f} | {size / seconds / 1e9:.2f} | {memory:,.0f} |")
    return lines


def table_of_ranks(ranks: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "| ranks, one thread each | each holds | cooperative | seconds | bytes needed by a rank | read by a rank | "
        "received from others | read by the node | read / needed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in ranks:
        needed, read, received = (
            f"{max(found[key]):,}" for key in ("bytes_needed", "bytes_read", "bytes_received")
        )
        ratio = sum(found["bytes_read"]) / sum(found["bytes_needed"])
        lines.append(
            f"| {found['ranks']} | {found['held']} | {'yes' if found.get('cooperative') else ''} | "
            f"{found['median']:.3f} | {needed} | {read} | {received} | {sum(found['bytes_read']):,} | {ratio:.3f} |"
        )
    return lines


def picture(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = dict(sorted(result["ways"].items(), key=lambda item: item[1]["median"], reverse=True))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4.5), width_ratios=(3, 2), layout="constrained"
    )
    seconds = [found["median"] for found in ways.values()]
    colours = ["#c2410c" if way == "shardwright" else "#94a3b8" for way in ways]
    bars = left.barh(list(ways), seconds, color=colours)
    left.bar_label(bars, [f" {value:.2f} s" for value in seconds])
    left.set(xscale="log", xlim=(min(seconds) / 2, max(seconds) * 3), xlabel="seconds (logarithmic)")
    left.set_title(
        f"Loading {result['checkpoint_bytes'] / 1e9:.2f} GB of MXFP8, warm, {result['threads']} threads"
    )
    scaling = result["scaling"].values()
    gigabytes = [found["checkpoint_bytes"] / 1e9 for found in scaling]
    right.plot(gigabytes, [found["median"] for found in scaling], "o-", color="#c2410c", label="seconds")
    memory = [found["memory_above_destination"] / 1e9 for found in scaling]
    right.plot(gigabytes, memory, "s--", color="#64748b", label="GB above the destination")
    right.set(xlabel="checkpoint, GB", xlim=(0, None), ylim=(0, None), title="shardwright by checkpoint size")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
