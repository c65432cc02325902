"""Draws a few milliseconds of a trace as docs/pictures/trace.svg.

python docs/site/trace_picture.py TRACE BEGIN_US LENGTH_US > docs/pictures/trace.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH, LEFT, RIGHT, LANE = 860, 70, 20, 11


def main(path: str, begin: float, length: float) -> None:
    events = json.loads(Path(path).read_text())["traceEvents"]
    scale = (WIDTH - LEFT - RIGHT) / length
    parts, top = [], 26
    for thread in sorted({event["tid"] for event in events if "tid" in event}):
        mine = [event for event in events if event.get("tid") == thread]
        own = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in mine if e["ph"] == "X"]
        begun = {e["id"]: e["ts"] for e in mine if e["ph"] == "b"}
        background = [(begun[e["id"]], e["ts"]) for e in mine if e["ph"] == "e"]
        lanes: list[float] = []
        parts.append(f'<text x="0" y="{top + 14}">thread {thread}</text>')
        parts.append(f'<text x="0" y="{top + 40}" class="small">reads</text>')
        for name, start, end in own:
            kind = {"decode": "a", "read": "c", "wait": "none"}.get(name, "d")
            parts += bar(start, end, top, 18, kind, begin, length, scale)
        for start, end in sorted(background):
            if end < begin or start > begin + length:
                continue
            lane = next((number for number, free in enumerate(lanes) if free <= start), len(lanes))
            lanes[lane : lane + 1] = [end]
            parts += bar(start, end, top + 28 + lane * LANE, LANE - 3, "c", begin, length, scale)
        top += 42 + max(len(lanes), 1) * LANE
    ticks = [mark(number * 500, begin, scale, top) for number in range(int(length // 500) + 1)]
    words = ((0, "a", "decode and place"), (130, "none", "wait"), (190, "c", "read, in the background"))
    key = [
        f'<rect x="{LEFT + x}" y="2" width="12" height="12" class="{kind}"/>'
        f'<text x="{LEFT + x + 17}" y="12" class="small">{what}</text>'
        for x, kind, what in words
    ]
    print(
        f'<svg viewBox="0 0 {WIDTH} {top + 16}" role="img" aria-label="What two threads of a load do when">'
    )
    print("\n".join([*key, *ticks, *parts, "</svg>"]))


def bar(
    start: float, end: float, top: int, height: int, kind: str, begin: float, length: float, scale: float
) -> list[str]:
    start, end = max(start, begin), min(end, begin + length)
    if end <= start:
        return []
    x, width = LEFT + (start - begin) * scale, max((end - start) * scale, 0.6)
    return [f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" class="{kind}"/>']


def mark(microseconds: int, begin: float, scale: float, bottom: int) -> str:
    x = LEFT + microseconds * scale
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="{bottom}" class="line" stroke-dasharray="2 4"/>'
        f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle" class="small">{microseconds / 1000:g} ms</text>'
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
