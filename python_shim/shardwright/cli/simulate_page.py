"""The HTML page of ``shardwright simulate``: one file that needs no network, its pictures inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from shardwright.cli.simulate import (
    WAYS,
    mesh_text,
    rank_table,
    rates_text,
    stage_table,
    way_table,
    whole_rows,
)
from shardwright.cli.table import amount

WIDTH = 1060  #: of a picture, in its own units
LEFT = 84  #: of the axis labels
MOST_BARS = 490  #: more ranks than this share bars
MOST_ROWS = 128  #: of the heat map

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6b7a; --line: #d9dfe6; --paper: #f6f8fa; --card: #fff;
  --a: #2f6fb3; --b: #86b1dc; --mark: #d0552b;
  --p0: #8a63b8; --p1: #d8a02a; --p2: #2f6fb3; --p3: #7d8a35; --p4: #3b9b8f; --p5: #c2603f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b5; --line: #35404c; --paper: #12171d;
  --card: #1b222a; --a: #69a7e6; --b: #37618c; --mark: #f08a5d; --p2: #69a7e6; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1140px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 25px; margin: 0 } h2 { font-size: 18px; margin: 0 0 2px }
p { margin: 0 0 10px; color: var(--soft); max-width: 90ch }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 18px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px; margin-top: 18px }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px }
.cards b { display: block; font-size: 19px; line-height: 1.3; white-space: nowrap }
.cards span { color: var(--soft); font-size: 13px }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
th { text-align: right; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); padding: 4px 8px }
td { text-align: right; padding: 4px 8px; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left } tr:last-child td { border-bottom: 0 }
td { white-space: nowrap }
svg { display: block; width: 100%; min-width: 760px; height: auto; font-size: 12px }
svg text { fill: var(--soft) } svg .strong { fill: var(--ink); font-weight: 600 }
svg .grid { stroke: var(--line) } svg .mean { stroke: var(--mark); stroke-width: 2 }
svg .edge { stroke: var(--line); stroke-dasharray: 3 3 }
svg .a, svg .b { shape-rendering: crispEdges }
svg .a { fill: var(--a) } svg .b { fill: var(--b) } svg .on { fill: #fff; font-weight: 600 }
svg .p0 { fill: var(--p0) } svg .p1 { fill: var(--p1) } svg .p2 { fill: var(--p2) }
svg .p3 { fill: var(--p3) } svg .p4 { fill: var(--p4) } svg .p5 { fill: var(--p5) }
"""


def page(facts: dict[str, Any]) -> str:
    """The page, as text. ``facts`` are those of ``shardwright.cli.simulate.simulate``."""
    title = f"Loading on {mesh_text(facts)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(facts['source'])}; planned by <code>shardwright simulate</code> with the code that a load runs."
        " Bytes, requests, extents and files are counted from the plans; planning is the processor"
        " time measured on this machine.</p>",
        _cards(facts),
        _section("How long a load would take", _speeds_text(facts), _time_bars(facts)),
        _section(
            "What each way to read moves", _ways_text(facts), _way_bars(facts) + _table(*way_table(facts))
        ),
        _section(
            "What each rank reads",
            "Bytes read by each rank, gaps that are read along included; where neighbours share a bar, its light"
            " part is what they differ by. The line is the mean of the pipeline stage: where all bars of a stage"
            " end at its line, the stage is balanced.",
            _balance(facts),
        ),
        _section(
            "Which ranks read which file",
            "One row for neighbouring ranks, one column for a file of the checkpoint. The stronger the colour, the"
            " more bytes a rank reads from it. The bars on top count the ranks that read the file.",
            _heat_map(facts),
        ),
        _section(
            "What a node asks of the file system",
            f"Mean over the nodes of {facts['ranks_per_node']} ranks, for each rank on its own and for ranks that"
            " read what their node needs once and hand it around. Distinct bytes are those that one or more"
            " ranks of the node need.",
            _node_bars(facts),
        ),
        _section("Pipeline stages", "", _table(*stage_table(facts))),
        _section("Per rank", "", _table(*rank_table(facts))),
        _section("The whole", "", _table([], whole_rows(facts))),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, text: str, body: str) -> str:
    paragraph = f"<p>{escape(text)}</p>" if text else ""
    return f'<section>\n<h2>{escape(title)}</h2>{paragraph}\n<div class="wide">{body}</div>\n</section>'


def _cards(facts: dict[str, Any]) -> str:
    ranks, amplification = facts["per_rank"], facts["amplification"]
    worst = max(stage["read_max_over_mean"] for stage in facts["stages"])
    together = sum(facts["seconds"]["together"].values())
    cards = [
        (amount("seconds", sum(facts["seconds"]["alone"].values())), "estimated time, each rank for itself"),
        (amount("seconds", together), "estimated time, a node's ranks together"),
        (
            amount("seconds", sum(facts["seconds"]["job"].values())),
            "estimated time, the job's ranks together",
        ),
        (amount("seconds", ranks["planning_seconds"]["mean"]), "planning on a rank, mean"),
        (amount("bytes", ranks["bytes_read"]["mean"]), "read by a rank, mean"),
        (f"{worst:.3f} ×", "largest read / mean of its stage"),
        (amount("files", ranks["files"]["mean"]), f"files a rank reads, of {facts['checkpoint_files']}"),
        (
            f"{amplification['alone']:.2f} → {amplification['together']:.2f} ×",
            "read / distinct bytes: alone → together",
        ),
        ("0 B", "exchanged to plan a load"),
        *(
            [
                (amount("bytes", save["bytes_exchanged"]), "exchanged to plan a save, by all ranks"),
                (amount("bytes", save["bytes_unchanged"]), "exchanged to plan the next one"),
            ]
            if (save := facts["save"])
            else []
        ),
    ]
    return '<div class="cards">' + "".join(
        f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in cards
    ) + "</div>"  # fmt: skip


def _svg(height: float, label: str, shapes: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(shapes)
        + "\n</svg>"
    )


def _rect(
    x: float, y: float, width: float, height: float, kind: str, title: str = "", style: str = ""
) -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    how = f' class="{kind}"' if kind else ""
    how += f' style="{style}"' if style else ""
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"{how}>{inner}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    how = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{how}>{escape(text)}</text>'


def _short(count: float) -> str:
    """Bytes at a tick: without the zeros that a table would have."""
    figure, unit = amount("bytes", count).split(" ")
    return f"{float(figure.replace(',', '')):g} {unit}"


def _by_stage(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranks, those of a stage together, wherever pp stands in the mesh."""
    return sorted(facts["rank_list"], key=lambda rank: (rank["stage"], rank["rank"]))


def _groups(ranks: Sequence[dict[str, Any]], most: int) -> list[Sequence[dict[str, Any]]]:
    """Neighbours of one stage together, so that there are about `most` groups or fewer."""
    size = -(-len(ranks) // most)
    return [
        ranks[i : min(i + size, end)] for _, first, end in _stage_runs(ranks) for i in range(first, end, size)
    ]


def _name_of(ranks: Sequence[dict[str, Any]]) -> str:
    first, last = ranks[0]["rank"], ranks[-1]["rank"]
    if first == last:
        return f"rank {first}"
    return (
        f"ranks {first} to {last}"
        if last - first < len(ranks)
        else f"{len(ranks)} ranks from {first} to {last}"
    )


def _ticks(largest: float) -> list[float]:
    """0 and round numbers up to one that is no less than the largest, at most six in all."""
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(step for step in (power / 5, power / 2, power, power * 2) if largest <= 5 * step)
    return [step * i for i in range(math.ceil(largest / step) + 1)]


def _stage_runs(ranks: Sequence[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """(stage, first, end) of each run of ranks of one stage, as indices into the list."""
    runs: list[tuple[int, int, int]] = []
    for i, rank in enumerate(ranks):
        if runs and runs[-1][0] == rank["stage"]:
            runs[-1] = (runs[-1][0], runs[-1][1], i + 1)
        else:
            runs.append((rank["stage"], i, i + 1))
    return runs


def _balance(facts: dict[str, Any]) -> str:
    ranks = _by_stage(facts)
    means = {stage["stage"]: stage["per_rank"]["bytes_read"]["mean"] for stage in facts["stages"]}
    height, top = 230.0, 26.0
    ticks = _ticks(max(max(rank["bytes_read"] for rank in ranks), 1))
    across = (WIDTH - LEFT - 10) / len(ranks)
    up = height / ticks[-1]
    shapes = []
    for tick in ticks:
        shapes.append(_line(LEFT, top + height - tick * up, WIDTH - 10, top + height - tick * up, "grid"))
        shapes.append(_text(LEFT - 8, top + height - tick * up + 4, _short(tick), "end"))
    position = 0
    for group in _groups(ranks, MOST_BARS):
        read = [rank["bytes_read"] for rank in group]
        x, width = LEFT + position * across, len(group) * across
        width += (
            -1.5 if width > 6 else 0.3
        )  # a gap where there is room for one, no hairline where there is none
        title = f"{_name_of(group)}, stage {group[0]['stage']}: {amount('bytes', max(read))}"
        if max(read) > min(read):
            shapes.append(_rect(x, top + height - max(read) * up, width, max(read) * up, "b", title))
        shapes.append(_rect(x, top + height - min(read) * up, width, min(read) * up, "a", title))
        position += len(group)
    runs = _stage_runs(ranks)
    for stage, first, end in runs:
        y, x1, x2 = top + height - means[stage] * up, LEFT + first * across, LEFT + end * across
        shapes.append(_line(x1, y, x2, y, "mean"))
        if len(runs) <= 32 and len(means) > 1:
            shapes.append(
                _text(
                    (x1 + x2) / 2, 14, f"stage {stage}" if len(runs) <= 16 else str(stage), "middle", "strong"
                )
            )
            shapes.append(_line(x1, 4, x1, top + height, "edge"))
    for i in sorted({0, len(ranks) // 4, len(ranks) // 2, 3 * len(ranks) // 4, len(ranks) - 1}):
        anchor = "start" if i == 0 else "end" if i == len(ranks) - 1 else "middle"
        shapes.append(
            _text(LEFT + (i + 0.5) * across, top + height + 18, f"rank {ranks[i]['rank']:,}", anchor)
        )
    return _svg(top + height + 26, "bytes read by each rank", shapes)


def _heat(depth: float) -> str:
    """An opaque colour, so that cells may overlap by a hair and show no seams."""
    return f"fill: color-mix(in srgb, var(--a) {depth * 100:.0f}%, var(--card))"


def _heat_map(facts: dict[str, Any]) -> str:
    ranks, files = _by_stage(facts), facts["files"]
    groups = _groups(ranks, MOST_ROWS)
    cells = []
    for group in groups:
        sums: dict[int, int] = {}
        for rank in group:
            for file, count in rank["file_bytes"].items():
                sums[int(file)] = sums.get(int(file), 0) + count
        cells.append({file: total / len(group) for file, total in sums.items()})
    largest = max((value for row in cells for value in row.values()), default=1.0) or 1.0
    bars, gap, below = 56.0, 8.0, 40.0
    across = (WIDTH - LEFT - 10) / len(files)
    down = max(min(22.0, 400 / len(groups)), 2.5)
    top = bars + gap
    shapes = [_text(LEFT - 8, 12, "ranks", "end"), _text(LEFT - 8, 28, "per file", "end")]
    most = max(max(file["ranks"] for file in files), 1)
    for i, file in enumerate(files):
        size = file["ranks"] / most * (bars - 4)
        title = f"{file['name']}: {file['ranks']:,} ranks read {amount('bytes', file['bytes_read'])}"
        shapes.append(_rect(LEFT + i * across, bars - size, max(across - 1, 0.5), size, "b", title))
    shapes.append(
        _rect(LEFT, top, across * len(files), down * len(groups), "", style="fill: none; stroke: var(--line)")
    )
    for row, (group, values) in enumerate(zip(groups, cells, strict=True)):
        for column, value in sorted(values.items()):
            depth = 0.12 + 0.88 * value / largest
            title = f"{_name_of(group)}, {files[column]['name']}: {amount('bytes', value)} a rank"
            shapes.append(
                _rect(
                    LEFT + column * across,
                    top + row * down,
                    across + 0.4,
                    down + 0.4,
                    "",
                    title,
                    _heat(depth),
                )
            )
    bottom = top + down * len(groups)
    for row in sorted({0, len(groups) // 4, len(groups) // 2, 3 * len(groups) // 4, len(groups) - 1}):
        shapes.append(
            _text(
                LEFT - 8, top + row * down + max(down / 2, 4) + 4, f"rank {groups[row][0]['rank']:,}", "end"
            )
        )
    shapes.append(_text(LEFT, bottom + 16, files[0]["name"]))
    if len(files) > 1:
        shapes.append(_text(WIDTH - 10, bottom + 16, files[-1]["name"], "end"))
    for i in range(40):
        depth = 0.12 + 0.88 * i / 39
        shapes.append(_rect(LEFT + 330 + i * 5, bottom + 24, 5.4, 10, "", style=_heat(depth)))
    shapes.append(_text(LEFT + 322, bottom + 33, "little", "end"))
    shapes.append(_text(LEFT + 538, bottom + 33, f"{amount('bytes', largest)} a rank"))
    return _svg(bottom + below, "which ranks read which file", shapes)


class Segment(NamedTuple):
    """A part of a bar: its length, its colour's name, and what both mean."""

    value: float
    kind: str
    what: str
    figure: str


def _bars(label: str, bars: Sequence[tuple[str, Sequence[Segment], str]]) -> str:
    """A bar for each (name, segments, what is said at its end), to one scale, and a legend of several segments."""
    left, row = 210.0, 40.0
    room = left + 16 + 7 * max(len(told) for *_, told in bars)
    scale = (WIDTH - room) / max(*(sum(one.value for one in segments) for _, segments, _ in bars), 1e-9)
    legend = bars[0][1] if len(bars[0][1]) > 1 else []
    shapes = []
    for i, (name, segments, told) in enumerate(bars):
        x, y = left, i * row + 4
        shapes.append(_text(left - 10, y + 19, name, "end"))
        for one in segments:
            width = one.value * scale
            shapes.append(_rect(x, y, width, row - 10, one.kind, f"{one.what}: {one.figure}"))
            if legend and width > 62:
                shapes.append(_text(x + width / 2, y + 19, one.figure, "middle", "on"))
            x += width
        shapes.append(_text(x + 8, y + 19, told, kind="strong"))
    x, y = left, len(bars) * row + 4
    for one in legend:
        shapes.append(_rect(x, y, 12, 12, one.kind))
        shapes.append(_text(x + 17, y + 10, one.what))
        x += 42 + 7 * len(one.what)
    return _svg(y + (20 if legend else 0), label, shapes)


def _time_bars(facts: dict[str, Any]) -> str:
    bars = []
    for way, label in WAYS.items():
        phases = facts["seconds"][way]
        segments = [
            Segment(seconds, f"p{i}", phase, amount("seconds", seconds))
            for i, (phase, seconds) in enumerate(phases.items())
        ]
        bars.append((label, segments, amount("seconds", sum(phases.values()))))
    return _bars("seconds by phase", bars)


def _way_bars(facts: dict[str, Any]) -> str:
    """What leaves the storage, and what nodes hand to each other."""
    bars = []
    for way, label in WAYS.items():
        storage, wire = (facts["ways"][way][name] for name in ("bytes_from_storage", "bytes_on_wire"))
        segments = [_bytes("p2", "from the storage", storage), _bytes("p3", "between nodes", wire)]
        bars.append((label, segments, f"{amount('bytes', storage + wire)} in all"))
    return _bars("bytes from the storage and between nodes", bars)


def _node_bars(facts: dict[str, Any]) -> str:
    means = {name: spread["mean"] for name, spread in facts["per_node"].items()}
    bars = []
    for label, name, requests in (
        ("needed, summed over the ranks", "bytes_needed", None),
        ("read, each rank for itself", "bytes_read", "requests"),
        ("distinct", "bytes_distinct", None),
        ("read together", "bytes_read_together", "requests_together"),
    ):
        segment = _bytes("a" if requests else "b", label, means[name])
        told = segment.figure
        if requests:
            times = means[name] / max(means["bytes_distinct"], 1)
            told += f", {times:.2f} × distinct, {amount('requests', means[requests])} requests"
        bars.append((label, [segment], told))
    return _bars("bytes that a node needs and reads", bars)


def _bytes(kind: str, what: str, count: float) -> Segment:
    return Segment(count, kind, what, amount("bytes", count))


def _speeds_text(facts: dict[str, Any]) -> str:
    return (
        f"An estimate from the counts below. Taken for granted: {rates_text(facts['speeds'])}."
        " Each phase on the rank or node that takes longest, one after the other, although a load overlaps"
        " reading and decoding. Planning is the slowest rank's, as measured here."
    )


def _ways_text(facts: dict[str, Any]) -> str:
    return (
        f"All nodes together. The job needs {amount('bytes', facts['job_bytes'])} of the checkpoint. Best at these"
        f" rates: {WAYS[facts['best']]}."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}\n{body}</table>"
