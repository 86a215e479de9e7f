"""The command that recommends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table
from rediffuse.cli.part_files import rank_and_world_size, recommend_to_part_files

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.recommender import Recommender


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    history: Annotated[str | None, typer.Option(help='Ids or titles, oldest first: "a|b|c".')] = None,
    user: Annotated[list[str] | None, typer.Option(help="Id of a known user; may be repeated.")] = None,
    users: Annotated[
        Path | None, typer.Option(help="User file: CSV or Parquet with a column user_id, and optionally history.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Items per user.")] = 10,
    exclude: Annotated[str | None, typer.Option(help='Ids or titles not to recommend: "a|b".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise of a stochastic model.")] = 0,
    samples: Annotated[int, typer.Option(help="Draws of a stochastic model to average.")] = 1,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Do not filter items of the history.")] = False,
    explain: Annotated[bool, typer.Option(help="Add paths of the knowledge graph (diffkg).")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .parquet or .csv file, or a folder for part files.")
    ] = None,
    rows_per_part: Annotated[int | None, typer.Option(min=1, help="Users per part file; default: 50000.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend items to known users, or for any history."""
    from rediffuse.errors import ConfigError
    from rediffuse.recommender import Recommender
    from rediffuse.recommender.user_files import UserFile

    if sum(option is not None for option in (history, user, users)) != 1:
        raise ConfigError(
            "Give exactly one of --history, --user and --users.",
            'For example --history "a|b", --user ID or --users FILE.',
        )
    if explain and (users or out or len(user or []) > 1):
        raise ConfigError("--explain explains one list at a time.", 'Use it with --history "a|b" or --user ID.')
    if out is not None and (out.is_dir() or out.suffix not in (".parquet", ".csv")):
        if out.suffix and not out.exists():
            raise ConfigError(
                f"{out} is neither .parquet nor .csv.",
                "Use one of the two extensions, or none for a folder of part files (or create the folder first).",
            )
        if users is None:
            raise ConfigError(f"{out} is a folder, which needs --users FILE.", "Give a .parquet or .csv file.")
        options = {"k": k, "seed": seed, "samples": samples, "filter_seen": not keep_seen}
        if rows_per_part is not None:
            options["rows_per_part"] = rows_per_part
        recommend_to_part_files(run, users, out, exclude, options, as_json)
        return
    if rows_per_part is not None:
        raise ConfigError(
            "--rows-per-part is for a folder of part files.", "Give a folder with -o, or leave the option out."
        )
    if rank_and_world_size()[1] > 1:
        raise ConfigError(
            "A launcher started several processes, and only a folder of part files can be divided among them.",
            "Give a folder with -o, or run rediffuse recommend without a launcher.",
        )
    recommender = Recommender.load(run)
    ids, histories = user, None
    if users is not None:
        ids, histories = UserFile(users, recommender.is_known_user).read()
    elif history is not None:
        histories = [recommender.find_items(filter(str.strip, history.split("|")))]
    found = recommender.recommend(
        users=ids,
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
    paths = _explain(recommender, found["item_id"], history, user) if explain else None
    if paths is not None:
        facts["paths"] = paths.to_dicts()

    def print_summary() -> None:
        if out is not None:
            print_rich(f"{len(found):,} rows written to {out}.")
            return
        listing = table("Recommendations", *(name for name in found.columns))
        for row in found.iter_rows():
            listing.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
        print_rich(listing)
        for line in [] if paths is None else _sentences(recommender, paths):
            print_rich(line)

    emit(facts, as_json, print_summary)


def _explain(recommender: Recommender, items: pl.Series, history: str | None, user: list[str] | None) -> pl.DataFrame:
    """Paths from the history of one user to the recommended ``items``."""
    if history is None:
        return recommender.explain(items, user=(user or [])[0], paths=2)
    return recommender.explain(items, history=recommender.find_items(filter(str.strip, history.split("|"))), paths=2)


def _sentences(recommender: Recommender, paths: pl.DataFrame) -> list[str]:
    """One line per path, with titles where there are any."""
    has_titles = "title" in recommender.items.columns
    titles = dict(recommender.items.select("item_id", "title").iter_rows()) if has_titles else {}
    lines = ["Paths of the knowledge graph, with their attention:"]
    for row in paths.iter_rows(named=True):
        end, start = (str(titles.get(row[column]) or row[column]) for column in ("item_id", "touched_item"))
        path = f"-- {row['relation']} --"
        if row["entity"] is not None:
            path += f" {row['entity']} -- {row['relation_back']} --"
        pruned = "" if row["kept"] else ", one of its edges was pruned"
        lines.append(f"  {end} {path} {start} ({row['strength']:.3f}{pruned})")
    if len(lines) == 1:
        return ["No path of the knowledge graph leads from the history to the recommended items."]
    return lines


def _write(frame: pl.DataFrame, path: Path) -> None:
    from rediffuse.files import atomic_write_bytes, atomic_write_parquet

    if path.suffix == ".parquet":
        atomic_write_parquet(path, frame)
    else:
        atomic_write_bytes(path, frame.write_csv().encode())
