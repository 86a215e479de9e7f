"""Draw docs/img/uncertainty.svg from a result of `benchmarks.measure.uncertainty`.

    python -m benchmarks.measure.uncertainty_figure

Left: what DiffuRec's confidences state against how often the list held the next item, before and after recalibration.
Right: NDCG@10 of the users kept, as fewer of them are kept, the surest first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from rediffuse.files import atomic_write_text

INK, PALE, GROUND = "#22303a", "#b9c0c4", "#fbfaf7"
# Confidences that are drawn, by the end of their names, what they are called, and a colour that the colour-blind tell
# from the others (Okabe & Ito).
DRAWN = {
    "score, list": ("the model's own score", "#000000"),
    " samples, agreement": ("samples of one model", "#d55e00"),
    " other seeds, agreement": ("models of other seeds", "#0072b2"),
    "0 dropout passes, agreement": ("dropout passes", "#009e73"),
    " history": ("history length", "#cc79a7"),
}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A plot of 270 x 250 units, from (left, 50) on, of the given ranges."""

    left: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((value - low) / (high - low) for value, (low, high) in ((x, self.x), (y, self.y)))
        return round(self.left + 270 * across, 1), round(300 - 250 * up, 1)

    def frame(self, title: str, names: tuple[str, str], ticks: tuple[Sequence[float], Sequence[float]]) -> str:
        parts = [text(self.left, 32, title, weight=600), text(self.left + 135, 338, names[0], anchor="middle")]
        parts.append(text(self.left, 46, names[1], size=11.5))
        for tick in ticks[0]:
            x = self.at(tick, self.y[0])[0]
            parts += [line([(x, 300), (x, 304)]), text(x, 318, f"{tick:g}", size=11.5, anchor="middle")]
        for tick in ticks[1]:
            y = self.at(self.x[0], tick)[1]
            parts += [line([(self.left, y), (self.left + 270, y)], PALE, 0.5)]
            parts += [text(self.left - 6, y + 4, f"{tick:g}", size=11.5, anchor="end")]
        return "".join([*parts, line([(self.left, 50), (self.left, 300), (self.left + 270, 300)])])

    def curve(self, points: Points, colour: str, *, dashes: str = "", dots: bool = False) -> str:
        places = [self.at(x, y) for x, y in points]
        fill = GROUND if dashes else colour
        circles = [f'<circle cx="{x}" cy="{y}" r="3" fill="{fill}" stroke="{colour}"/>' for x, y in places if dots]
        return line(places, colour, 1.8, dashes) + "".join(circles)


def line(places: Points, colour: str = INK, width: float = 1, dashes: str = "") -> str:
    path = " ".join(f"{x},{y}" for x, y in places)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>\n'


def text(x: float, y: float, words: str, *, size: float = 13, weight: int = 400, anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>\n'


def drawing(model: dict[str, Any]) -> str:
    """The figure of the confidences of a model."""
    rows = {end: next(row for row in model["confidences"] if row["confidence"].endswith(end)) for end in DRAWN}
    highest = 2 * (int(50 * max(max(row["ndcg_of_the_surest"]) for row in rows.values())) + 1)
    left, right = Panel(50, (0, 1), (0, 0.5)), Panel(420, (0, 100), (0, highest))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1], [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    reliability = "Reliability", ("stated probability", "share of lists with the next item"), ticks
    kept = [0, 25, 50, 75, 100]
    risk = "Fewer users, the surest first", ("users kept, %", "NDCG@10, %"), (kept, range(0, highest + 1, 4))
    parts = [left.frame(*reliability), right.frame(*risk)]
    parts.append(left.curve([(0, 0), (0.5, 0.5)], PALE, dashes="2 3"))
    mean = 100 * (1 - model["aurc_random"])
    parts.append(right.curve([(0, mean), (100, mean)], PALE, dashes="2 3"))
    for number, (end, (name, colour)) in enumerate(DRAWN.items()):
        row = rows[end]
        for bins, dashes in (("reliability", "5 3"), ("recalibrated", "")):
            points = [(of["stated"], of["observed"]) for of in row.get(bins, ())]
            parts.append(left.curve(points, colour, dashes=dashes, dots=True))
        points = zip(row["coverage"], row["ndcg_of_the_surest"], strict=True)
        parts.append(right.curve([(100 * x, 100 * y) for x, y in points], colour))
        x, y = 50 + 225 * (number % 3), 366 + 22 * (number // 3)
        parts += [line([(x, y - 4), (x + 22, y - 4)], colour, 2.5), text(x + 28, y, name)]
    parts += [line([(500, 384), (522, 384)], PALE, 2, "2 3"), text(528, 388, "ideal; users at random")]
    parts.append(text(50, 412, "Left: hollow, as stated; filled, recalibrated on the validation subset.", size=11.5))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 426" role="img" aria-labelledby="t"'
    head += (
        f' font-family="system-ui, sans-serif" fill="{INK}">\n<title id="t">Reliability and selective risk</title>\n'
    )
    return f'{head}<rect width="720" height="426" rx="6" fill="{GROUND}"/>\n{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULTS / "uncertainty-ml-100k.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img" / "uncertainty.svg")
    arguments = parser.parse_args()
    found = json.loads(arguments.result.read_text(encoding="utf-8"))
    atomic_write_text(arguments.out, drawing(found["models"]["diffurec"]))


if __name__ == "__main__":
    main()
