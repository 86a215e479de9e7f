"""The command that recommends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.batch import place, recommend_to_part_files
from rediffuse.cli.output import answer, show, table

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.recommender import Recommender


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
    from rediffuse.recommender.user_files import UserFile

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
        recommend_to_part_files(run, users, out, exclude, options, as_json)
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
        asked, histories = UserFile(users, recommender.is_known_user).read()
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


def _write(frame: pl.DataFrame, path: Path) -> None:
    from rediffuse.files import atomic_write_bytes, atomic_write_parquet

    if path.suffix == ".parquet":
        atomic_write_parquet(path, frame)
    else:
        atomic_write_bytes(path, frame.write_csv().encode())
