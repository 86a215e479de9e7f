"""Commands that train, evaluate and answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.batch import place, recommend_in_parts
from rediffuse.cli.output import answer, process, show, table
from rediffuse.cli.splits import read_split

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.recommender import Recommender

SHOWN_METRICS = (
    *(f"{kind}@{k}" for kind in ("hr", "ndcg") for k in (5, 10, 20)),
    *("recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "diversity@10"),
    *("popularity@10", "popularity_lift@10"),
)


@app.command()
def models(as_json: AsJson = False) -> None:
    """All models, their presets and their options."""
    from rediffuse.models import model_class, names

    facts: dict[str, Any] = {}
    for name in names():
        config = model_class(name).Config
        facts[name] = {
            "presets": ["default", *config.presets],
            "options": {
                option: {"default": field.get_default(), "description": field.description}
                for option, field in config.model_fields.items()
            },
        }

    def for_people() -> None:
        for name, fact in facts.items():
            listing = table(f"{name} (presets: {', '.join(fact['presets'])})", "option", "default", "")
            listing.columns[2].justify = "left"
            for option, field in fact["options"].items():
                listing.add_row(option, str(field["default"]), field["description"] or "")
            show(listing)

    answer(facts, as_json, for_people)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model; see: rediffuse models")],
    dataset: Annotated[Path, typer.Argument(help="Folder made by prepare or data.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    preset: Annotated[str | None, typer.Option(help="Named options, for example paper or reference.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="option=value; may be repeated.")] = None,
    split: Annotated[
        str, typer.Option(help="default, global-time, leave-one-out, given, ratio, paper:diffurec or paper:diffrec.")
    ] = "default",
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this much training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    track: Annotated[str | None, typer.Option(help="A tracker of Accelerate, for example tensorboard.")] = None,
    phases: Annotated[
        list[str] | None, typer.Option("--phase", help="name=RUN: take a phase from a run instead of training it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model and write its run folder."""
    from rediffuse.config import parse_settings, read_settings
    from rediffuse.training import train as run_training

    options = (read_settings(config) if config else {}) | parse_settings(settings or [])
    parts = read_split(split, dataset)
    run = run_training(
        model,
        parts,
        out,
        preset=preset,
        config=options,
        seed=seed,
        resume=resume,
        max_minutes=max_minutes,
        tracker=track,
        progress=sys.stderr.isatty(),
        phases_from={name: str(path) for name, path in parse_settings(phases or []).items()},
    )
    facts = {"run": str(run.path), "minutes": run.minutes, "split": parts.name, "validation": run.validation}
    facts |= {"best_epoch": run.config["training"]["best_epoch"], "resolved": run.config["resolved"]}

    def for_people() -> None:
        if run.validation:
            listing = table(f"Validation of {out}", "metric", "seen items kept", "seen items filtered")
            for name in (n for n in run.validation if not n.endswith("/unseen")):
                listing.add_row(name, f"{run.validation[name]:.4f}", f"{run.validation[name + '/unseen']:.4f}")
            show(listing)
        show(f"{run.minutes:.1f} minutes, best epoch {facts['best_epoch']}. Next: rediffuse evaluate {out} {dataset}")

    if process() == 0:
        answer(facts, as_json, for_people)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset it was trained on.")],
    protocol: Annotated[
        str | None, typer.Option(help="paper:diffurec, paper:diffrec or sampled-N; default: the run's split, in full.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of a stochastic model.")] = 0,
    sampling_seeds: Annotated[int, typer.Option(min=1, help="Seeds of that noise to average over.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Metrics on the test part, over the whole catalogue unless asked otherwise; written to the run folder as well."""
    from rediffuse.comparison import evaluate_run
    from rediffuse.data.dataset import Dataset

    seeds = range(seed, seed + sampling_seeds)
    facts = evaluate_run(run, Dataset.load(dataset), protocol=protocol, seeds=seeds)

    def for_people() -> None:
        rules, counts = facts["protocol"], facts["counts"]
        show(_metrics_table(facts["metrics"], f"Test of {run} ({facts['split']}, protocol {rules['name']})"))
        inputs = "are" if rules["validation_is_input"] else "are not"
        show(
            f"{counts['users']:,} users, {counts['items']:,} items; {counts['cold_users']:,} users without history; "
            f"{counts['truth_never_trained_share']:.1%} of the true items were never seen in training; "
            f"{facts['users_per_second']:,.0f} users/s. Validation events {inputs} part of the histories."
        )
        if not rules["comparable"]:
            show("NOT COMPARABLE with figures of other protocols.")
        for remark in (rules["note"], facts["leak"]):
            if remark:
                show(f"Note: {remark}")

    if process() == 0:
        answer(facts, as_json, for_people)


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    history: Annotated[str | None, typer.Option(help='Ids or titles, oldest first: "a|b|c".')] = None,
    user: Annotated[list[str] | None, typer.Option(help="A known user's id; may be repeated.")] = None,
    users: Annotated[
        Path | None, typer.Option(help="CSV or Parquet file, or files, with a column user_id, maybe history.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Items per person.")] = 10,
    exclude: Annotated[str | None, typer.Option(help='Ids or titles nobody is to get: "a|b".')] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of a stochastic model.")] = 0,
    samples: Annotated[int, typer.Option(help="Draws to average.")] = 1,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Items of the history may come again.")] = False,
    explain: Annotated[bool, typer.Option(help="Say why, by paths of a knowledge graph (diffkg).")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write to this .parquet or .csv file, or folder of parts.")
    ] = None,
    rows_per_part: Annotated[
        int | None, typer.Option(min=1, help="People in a part, where -o is a folder; default: 50000.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend to known users, or to anyone by their history."""
    from rediffuse.errors import ConfigError
    from rediffuse.recommender import Recommender
    from rediffuse.recommender.people_files import PeopleFile

    if sum(option is not None for option in (history, user, users)) != 1:
        raise ConfigError("Say for whom, in one way.", 'Give --history "a|b", --user ID, or --users FILE.')
    if explain and (users or out or len(user or []) > 1):
        raise ConfigError("--explain speaks of one list at a time.", 'Use it with --history "a|b" or --user ID.')
    if out is not None and (out.is_dir() or out.suffix not in (".parquet", ".csv")):
        if out.suffix and not out.exists():
            raise ConfigError(
                f"{out} is neither .parquet nor .csv.",
                "Choose one of the two endings, or none for a folder of parts (or make the folder first).",
            )
        if users is None:
            raise ConfigError(f"{out} is a folder, which is for --users FILE.", "Name a .parquet or .csv file.")
        options = {"k": k, "seed": seed, "samples": samples, "filter_seen": not keep_seen}
        if rows_per_part is not None:
            options["rows_per_part"] = rows_per_part
        recommend_in_parts(run, users, out, exclude, options, as_json)
        return
    if rows_per_part is not None:
        raise ConfigError("--rows-per-part is for a folder of parts.", "Name a folder with -o, or leave it out.")
    if place()[1] > 1:
        raise ConfigError(
            "A launcher started several processes, which share the work of a folder of parts alone.",
            "Name a folder with -o, or start rediffuse recommend without a launcher.",
        )
    recommender = Recommender.load(run)
    asked, histories = user, None
    if users is not None:
        asked, histories = PeopleFile(users, recommender.knows).read()
    elif history is not None:
        histories = [recommender.find_items(filter(str.strip, history.split("|")))]
    found = recommender.recommend(
        users=asked,
        histories=histories,
        k=k,
        exclude=recommender.find_items(exclude.split("|")) if exclude else None,
        seed=seed,
        samples=samples,
        filter_seen=not keep_seen,
    )
    found = recommender.titled(found)
    if out is not None:
        _write(found, out)
    written = {"rows": len(found), "out": str(out)}
    facts = written if out is not None else {"run": str(run), "recommendations": found.to_dicts()}
    reasons = _reasons(recommender, found["item_id"], history, user) if explain else None
    if reasons is not None:
        facts["paths"] = reasons.to_dicts()

    def for_people() -> None:
        if out is not None:
            show(f"{len(found):,} rows written to {out}.")
            return
        listing = table("Recommendations", *(name for name in found.columns))
        for row in found.iter_rows():
            listing.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
        show(listing)
        for line in [] if reasons is None else _sentences(recommender, reasons):
            show(line)

    answer(facts, as_json, for_people)


def _reasons(recommender: Recommender, items: pl.Series, history: str | None, user: list[str] | None) -> pl.DataFrame:
    """Paths to all that was recommended to one person."""
    if history is None:
        return recommender.explain(items, user=(user or [])[0], paths=2)
    return recommender.explain(items, history=recommender.find_items(filter(str.strip, history.split("|"))), paths=2)


def _sentences(recommender: Recommender, reasons: pl.DataFrame) -> list[str]:
    """Each path as one line, in titles where there are any."""
    titled = "title" in recommender.items.columns
    named = dict(recommender.items.select("item_id", "title").iter_rows()) if titled else {}
    lines = ["Why, as the attention over the knowledge graph has it:"]
    for row in reasons.iter_rows(named=True):
        to, came_from = (str(named.get(row[end]) or row[end]) for end in ("item_id", "touched_item"))
        way = f"-- {row['relation']} --"
        if row["entity"] is not None:
            way += f" {row['entity']} -- {row['relation_back']} --"
        pruned = "" if row["kept"] else ", an edge of it pruned"
        lines.append(f"  {to} {way} {came_from} ({row['strength']:.3f}{pruned})")
    if len(lines) == 1:
        return ["No path of the knowledge graph leads from the history to what is recommended."]
    return lines


def _metrics_table(metrics: dict[str, dict[str, float]], title: str) -> Any:
    labels = {"all": "seen items kept", "unseen": "seen items filtered"}
    listing = table(title, "metric", *(labels[policy] for policy in metrics))
    for name in (name for name in SHOWN_METRICS if all(name in values for values in metrics.values())):
        shown = ".1f" if name.startswith("popularity@") else ".4f"
        listing.add_row(name, *(format(values[name], shown) for values in metrics.values()))
    return listing


def _write(frame: pl.DataFrame, path: Path) -> None:
    from rediffuse.data.files import atomic_write_bytes, atomic_write_parquet

    if path.suffix == ".parquet":
        atomic_write_parquet(path, frame)
    else:
        atomic_write_bytes(path, frame.write_csv().encode())
