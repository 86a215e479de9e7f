"""Print the tables of PDRec's ablation in docs/benchmarks.md, from results of `compare.py`.

python -m benchmarks.tables.pdrec_table pdrec-douban-book amazon-beauty
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from benchmarks.common import RESULTS

SIGNALS = ("hbr", "dpa", "nns")
ORDER = ("TI-DiffRec alone", "GRU4Rec", "SASRec", "GRU4Rec, softmax", "SASRec, softmax")
Name = tuple[str, str]


def name(label: str) -> Name:
    """Read the backbone and the signals of a variant from its label."""
    if label.startswith("tdiffrec"):
        return ORDER[0], ""
    options = dict(re.findall(r"([\w.]+)=([\w.]+)", label))
    softmax = options.get("loss") == "softmax"
    backbone = ("GRU4Rec" if options.get("backbone") == "gru4rec" else "SASRec") + (", softmax" if softmax else "")
    on = [signal for signal in SIGNALS if options.get(signal) != "False"]
    everything = ["hbr", "dpa"] if softmax else list(SIGNALS)
    return backbone, "all" if on == everything else " + ".join(on) or "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    for data in parser.parse_args().data:
        found = [read(f"compare-pdrec-{data}-given{suffix}.json") for suffix in ("", "-sampled-99")]
        costs = {name(row["variant"]): row for row in found[0]["costs"]}
        print(f"\n{data}\n\n| | signals | HR@10 | NDCG@10 | HR@10 of 100 | NDCG@10 of 100 | min | best epoch |")
        print("|---|---|" + "--:|" * 6)
        signals = ["", "plain", *SIGNALS, "all"]
        for key in sorted(costs, key=lambda key: (ORDER.index(key[0]), signals.index(key[1]))):
            cells = [cell(one, key, metric) for one in found for metric in ("hr@10", "ndcg@10")]
            cost = costs[key]
            print(f"| {' | '.join([*key, *cells])} | {cost['train_minutes']:.1f} | {cost['best_epoch']:.0f} |")
        for title, one in zip(("full", "of 100"), found, strict=True):
            for line in differences(one):
                print(f"{title}: {line}")


def read(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def cell(found: dict[str, Any], key: Name, metric: str) -> str:
    """Format the mean over seeds with half the 95 % interval, in per cent, seen items filtered."""
    for row in found["summary"]:
        if row["policy"] == "unseen" and row["metric"] == metric and name(row["variant"]) == key:
            return f"{100 * row['mean']:.2f} ±{50 * (row['high'] - row['low']):.2f}"
    return ""


def differences(found: dict[str, Any]) -> list[str]:
    """Say what signals change in NDCG@10, in points, with the 95 % interval over users and Holm's p."""
    lines = []
    for row in found["pairs"]:
        first, second = name(row["first"]), name(row["second"])
        if row["policy"] != "unseen" or first[0] != second[0] or "plain" not in (first[1], second[1]):
            continue
        sign = 1 if second[1] == "plain" else -1
        low, high = sorted((sign * row["low"], sign * row["high"]))
        signal = (first if sign == 1 else second)[1]
        change = f"{100 * sign * row['difference']:+.2f} ({100 * low:.2f} to {100 * high:.2f})"
        lines.append(f"{first[0]}, {signal} - plain: {change}, p {row['p_holm']:.0e}")
    return lines


if __name__ == "__main__":
    main()
