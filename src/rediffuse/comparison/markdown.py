"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from rediffuse.comparison.result import Comparison
from rediffuse.comparison.runs import BY_USER
from rediffuse.comparison.slices import NEAR_DUPLICATES, NEW_USERS, OF_TRUTH, ceiling_text
from rediffuse.data.cold_users import users_text, without_text
from rediffuse.evaluation.metrics import flat_name

SHOWN = ("hr@10", "ndcg@10", "recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "popularity_lift@10")
POLICY_NAMES = {"all": "seen items kept", "unseen": "seen items filtered"}
SIGNIFICANT = 0.05
# Beside intervals and tests over targets that are predicted one after the other.
DEPENDENT = "Intervals and p are clustered by user: they allow for targets of one user being alike."
# The p values of a pair: the head of a column, and where it is in `Comparison.pairs`.
P_COLUMNS = {"p (Holm)": "p_holm", "p (FDR)": "p_fdr", "p (seeds)": "p_seeds"}
SEEDS_NOTE = "p (seeds): Welch's t test between training seeds, not corrected; empty where the seeds allow no test."
ITEM_METRICS = ("recall@10", "gain@10")


def markdown(comparison: Comparison) -> str:
    """The main tables of a comparison."""
    facts = comparison.facts
    lines = ["# Comparison", "", *protocol_lines(facts), ""]
    for policy in facts["protocol"]["seen"]:
        lines += [f"## {POLICY_NAMES[policy].capitalize()}", "", *_metrics(comparison, policy), ""]
        if facts["counts"]["cold_users"]:
            lines += [*_with_history(comparison, policy), ""]
    lines += ["## Cost", "", *_costs(comparison.costs), ""]
    chosen = flat_name(comparison.metric, comparison.policy)
    lines += [f"## Intervals of {chosen}", "", *_spread(comparison), ""]
    pairs = comparison.pairs.filter(policy=comparison.policy) if len(comparison.pairs) else comparison.pairs
    if len(pairs):
        lines += [f"## Differences in {chosen}", "", *_pairs(pairs, facts["counts"]), ""]
    if len(comparison.ablations):
        lines += ["## Diffusion against its ablation", "", *_ablations(comparison.ablations), ""]
    if len(comparison.steps):
        lines += ["## Validation quality by sampling steps", "", *_steps(comparison.steps), ""]
    slices = comparison.slices.filter(policy=comparison.policy)
    of_users = [(by, comparison.metric) for by in (*BY_USER, NEW_USERS[0], NEAR_DUPLICATES)]
    of_items = [("item popularity", name) for name in ITEM_METRICS] + [(by, comparison.metric) for by in OF_TRUTH]
    for by, metric in of_users + of_items:
        shown = slices.filter(by=by, metric=metric)
        if not len(shown):  # by number of friends, without a social graph; one group alone
            continue
        lines += [f"## {flat_name(metric, comparison.policy)} by {by}", "", *_slices(shown), ""]
    return "\n".join(lines)


def sentences(pairs: pl.DataFrame) -> list[str]:
    """One sentence per significant difference; one last sentence for the pairs without."""
    lines, undecided = [], []
    for row in pairs.iter_rows(named=True):
        better, worse = (row["first"], row["second"]) if row["difference"] > 0 else (row["second"], row["first"])
        if row["p_holm"] < SIGNIFICANT:
            lines.append(
                f"{better} is better than {worse} (by {abs(row['difference']):.4f}, {p_value(row['p_holm'])})."
            )
        else:
            undecided.append(f"{row['first']} and {row['second']}")
    if undecided:
        lines.append(f"No significant difference: {'; '.join(undecided)}.")
    return lines


def p_columns(pair: dict[str, Any]) -> list[str]:
    """The p values of a pair under the heads of `P_COLUMNS`."""
    return [p_value(pair[name]) for name in P_COLUMNS.values()]


def p_value(p: float | None) -> str:
    """A p value as text, to four decimals: smaller values say more about the test's assumptions than about the runs."""
    if p is None:
        return ""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def refit_note(facts: dict[str, Any]) -> str | None:
    """Which variants learned from the validation interactions too, and which did not; None if none did."""
    refitted = facts["refitted"]
    others = [label for label in facts["variants"] if label not in refitted]
    if not refitted:
        return None
    parts = facts.get("refitted_parts", {})
    named = [f"{label} (only the {parts[label]})" if label in parts else label for label in refitted]
    note = f"Learned from the validation interactions too, after all choices (refit): {', '.join(named)}."
    if others:
        note += f" Learned from the training interactions alone, which is a handicap: {', '.join(others)}."
    return note


def split_text(split: dict[str, Any]) -> str:
    """A split and its options, for example ``ratio: test 0.1, seed 3``."""
    options = [f"{name.replace('_', ' ')} {_option_text(value)}" for name, value in (split.get("params") or {}).items()]
    return f"{split['name']}: {', '.join(options)}" if options else split["name"]


def _option_text(value: Any) -> str:
    return "default" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def protocol_lines(facts: dict[str, Any]) -> list[str]:
    """What was compared on, as the lines of a list."""
    data, rules, counts = facts["data"], facts["protocol"], facts["counts"]
    inputs = "are" if rules["validation_is_input"] else "are not"
    leak = facts["split"]["leak"] or "none known: training is strictly earlier than the test subset."
    lines = [
        f"- Data: {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions; "
        f"tested: {users_text(counts)}, {without_text(counts)}.",
        f"- New items: {ceiling_text(counts, facts['ceiling'])}.",
        f"- Protocol: {rules['name']} (split {split_text(facts['split'])}), candidates: {rules['candidates']}; "
        f"{' and '.join(POLICY_NAMES[policy] for policy in rules['seen'])}; validation interactions {inputs} part of "
        "the histories at test time.",
        f"- Leaks: {leak}",
        f"- Selected on validation by {', '.join(facts['selected_by'])}.",
        *(f"- {note}" for note in [refit_note(facts)] if note),
        f"- Evaluated on {', '.join(facts['dates'])}; {'; '.join(facts['hardware'])}.",
    ]
    return lines if rules["comparable"] else [*lines, f"- **Not comparable.** {rules['note']}"]


def _metrics(comparison: Comparison, policy: str) -> list[str]:
    return [*_table(*metric_cells(comparison, policy)), "", "± is half the 95 % interval over training seeds."]


def metric_cells(comparison: Comparison, policy: str) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the table of metrics."""
    rows = comparison.summary.filter(policy=policy)
    names = [name for name in SHOWN if name in set(rows["metric"])]
    cells: dict[str, dict[str, str]] = {}
    for row in rows.iter_rows(named=True):
        spread = "" if row["low"] is None else f" ±{(row['high'] - row['low']) / 2:.4f}"
        cells.setdefault(row["variant"], {})[row["metric"]] = f"{row['mean']:.4f}{spread}"
    seeds = dict(rows.select("variant", "seeds").iter_rows())
    table = [[label, str(seeds[label]), *(values.get(n, "") for n in names)] for label, values in cells.items()]
    for label, figures in comparison.published.items():
        shown = [f"{figures[n]:.4f}" if (n := flat_name(name, policy)) in figures else "" for name in names]
        if any(shown):
            table.append([f"{label} (published, not run here: {figures.get('source', 'no source')})", "", *shown])
    return ["", "seeds", *names], table


def _with_history(comparison: Comparison, policy: str) -> list[str]:
    """The metrics over the users with a history alone."""
    rows = comparison.summary.filter(policy=policy).drop_nulls("with_history")
    counts = comparison.facts["counts"]
    if not len(rows):
        return ["No test user has a history: every model was measured by its list for new users alone."]
    names = [name for name in SHOWN if name in set(rows["metric"])]
    cells: dict[str, dict[str, str]] = {}
    for row in rows.iter_rows(named=True):
        cells.setdefault(row["variant"], {})[row["metric"]] = f"{row['with_history']:.4f}"
    table = [[label, *(values.get(name, "") for name in names)] for label, values in cells.items()]
    known = counts.get("targets", counts["users"]) - counts["cold_users"]
    what = "targets" if "targets" in counts else "users"
    return [f"Over the {known:,} {what} with a history:", "", *_table(["", *names], table)]


def _spread(comparison: Comparison) -> list[str]:
    rows = comparison.summary.filter(policy=comparison.policy, metric=comparison.metric)
    heads = ["", "mean", "seeds", "95 % over training seeds", "sd over sampling seeds", "95 % over users"]
    table = [
        [
            row["variant"],
            f"{row['mean']:.4f}",
            str(row["seeds"]),
            _ends(row["low"], row["high"]) or "one seed",
            "" if row["sampling_std"] is None else f"{row['sampling_std']:.1e} ({row['sampling_seeds']} seeds)",
            _ends(row["users_low"], row["users_high"]),
        ]
        for row in rows.iter_rows(named=True)
    ]
    return _table(heads, table)


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:z.4f} to {high:z.4f}"


def _steps(steps: pl.DataFrame) -> list[str]:
    rows = [
        [row["variant"], row["metric"], str(row["sampling_steps"]), f"{row['value']:.4f}"]
        for row in steps.iter_rows(named=True)
    ]
    return _table(["", "metric", "sampling steps", "value"], rows)


def _slices(slices: pl.DataFrame) -> list[str]:
    names = dict(slices.select("slice", "size").iter_rows())
    means: dict[str, dict[str, str]] = {}
    for row in slices.iter_rows(named=True):
        means.setdefault(row["variant"], {})[row["slice"]] = f"{row['mean']:.4f}"
    heads = ["", *(f"{name} (n = {size:,})" for name, size in names.items())]
    return _table(heads, [[label, *(values.get(name, "") for name in names)] for label, values in means.items()])


def _costs(costs: pl.DataFrame) -> list[str]:
    heads = ["", "training, min", "best epoch", "users/s", "peak memory, MiB", "parameters"]
    shown = ("{}", "{:.2f}", "{:.0f}", "{:,.0f}", "{:,.0f}", "{:,}")
    return _table(
        heads,
        [["" if v is None else f.format(v) for f, v in zip(shown, r, strict=True)] for r in costs.iter_rows()],
    )


def _pairs(pairs: pl.DataFrame, counts: dict[str, Any]) -> list[str]:
    what, note = ("targets", " " + DEPENDENT) if "targets" in counts else ("users", "")
    return [
        *_table(*pair_cells(pairs)),
        "",
        f"Paired t tests over {pairs['users'][0]:,} {what}, values averaged over seeds. Holm bounds the chance of any "
        f"false finding, FDR (Benjamini and Hochberg) their expected share. {SEEDS_NOTE}{note}",
    ]


def pair_cells(pairs: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the table of pairs."""
    rows = [
        [
            f"{r['first']} − {r['second']}",
            f"{r['difference']:+z.4f}",
            f"{r['low']:+z.4f} to {r['high']:+z.4f}",
            f"{r['effect']:+z.3f}",
            *p_columns(r),
        ]
        for r in pairs.iter_rows(named=True)
    ]
    return ["", "difference", "95 % interval", "effect d_z", *P_COLUMNS], rows


def _ablations(ablations: pl.DataFrame) -> list[str]:
    rows = [
        [
            f"{r['variant']} − {r['ablation']}",
            flat_name(r["metric"], r["policy"]),
            f"{r['difference_mean']:+z.4f}",
            f"{r['difference_low']:+z.4f} to {r['difference_high']:+z.4f}",
            p_value(r["p"]),
            p_value(r["p_seeds"]),
        ]
        for r in ablations.iter_rows(named=True)
    ]
    heads = ["", "metric", "difference", "95 % interval", "p (users)", "p (seeds)"]
    return [*_table(heads, rows), "", f"Differences and p (users) are over users, not corrected. {SEEDS_NOTE}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---", *["--:"] * (len(heads) - 1)], *rows)]
