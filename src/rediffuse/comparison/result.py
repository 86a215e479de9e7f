"""The result of a comparison: plain tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from rediffuse.display import Displayed


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """The result of `compare`, as plain tables.

    Attributes:
        metric, policy: what pairs are tested on, for example "ndcg@10" and "unseen".
        baseline: the variant that is in every tested pair; None: every pair is tested.
        facts: data, split, protocol and test users, which are the same for all runs.
        summary: one row per variant, policy and metric: mean over training seeds and its 95 % interval (null with one
            seed), standard deviation over sampling seeds (null if the model is not stochastic), 95 % interval over
            users (null if the metric has no value per user), and the mean over the users with a history (null if there
            are none).
        pairs: one row per policy and pair of variants: mean difference over users with its interval, Cohen's d_z, p
            of the paired t test over users, and p after correction over the pairs of a policy, by Holm (`p_holm`) and
            by Benjamini and Hochberg (`p_fdr`). `p_seeds` is p of Welch's t test between the training seeds of the
            two, not corrected; null if one of them has fewer than two seeds, or if neither varies over its seeds and
            they differ.
        slices: one row per policy, variant, metric and group of users (by length of history, by number of friends if
            there is a social graph, new and known users, and with and without a near-duplicate if asked for) or of
            true items. By training interactions, metrics of items are "recall@10", the share of true items in the
            first ten places, and "gain@10", the mean over true items of 1 / log2(rank + 1) in the first ten places
            and 0 elsewhere. For new and known items, and by time
            since the item appeared, they are the accuracy metrics with the truth restricted to the group, over the
            users (``size``) who have such a true item.
        costs: one row per variant.
        ablations: one row per policy, diffusion variant and metric: the difference from the same variant without
            diffusion, with its interval and `p` over users, and `p_seeds` as for pairs; neither is corrected.
        steps: validation metric by number of sampling steps, per diffusion variant.
        curves: validation metric by minutes of training, per trained variant (its first seed).
        published: published figures, as given.
    """

    metric: str
    policy: str
    baseline: str | None
    facts: dict[str, Any]
    summary: pl.DataFrame
    pairs: pl.DataFrame
    slices: pl.DataFrame
    costs: pl.DataFrame
    ablations: pl.DataFrame
    steps: pl.DataFrame
    curves: pl.DataFrame
    published: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        tables = {name: value for name, value in vars(self).items() if isinstance(value, pl.DataFrame)}
        return vars(self) | {name: table.to_dicts() for name, table in tables.items()}

    def _display(self) -> tuple[str, dict[str, Any]]:
        name = self.metric if self.policy == "all" else f"{self.metric}/{self.policy}"
        rows = self.summary.filter((pl.col("policy") == self.policy) & (pl.col("metric") == self.metric))
        means = {row["variant"]: row["mean"] for row in rows.sort("mean", descending=True).to_dicts()}
        best = dict(list(means.items())[:6])
        return f"Comparison {name}, split {self.facts['split']['name']}", {
            **best,
            "variants": f"{len(means)}, of which the best {len(best)} are shown" if len(best) < len(means) else None,
            "tested pairs": len(self.pairs) and self.pairs.filter(pl.col("policy") == self.policy).height,
        }
