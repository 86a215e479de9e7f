"""Commands that read data: `rediffuse data` and `rediffuse prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table

if TYPE_CHECKING:
    from rediffuse.data.dataset import Dataset


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A public data set; without it, all are listed.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write the dataset to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Get a public data set, for example: rediffuse data ml-100k -o data/ml-100k"""
    from rediffuse.errors import ConfigError
    from rediffuse.readers import public_datasets

    if name is None:
        known = list(public_datasets.public_dataset_names())
        emit({"names": known}, as_json, lambda: print_rich("\n".join(known)))
        return
    if out is None:
        raise ConfigError("No folder was given for the dataset.", f"Name one: rediffuse data {name} -o data/{name}")
    _report(public_datasets.public_dataset(name, out), out, as_json)


@app.command()
def prepare(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="CSV, TSV or Parquet file(s), or RecBole .inter file or folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the dataset to.")],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    time: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    order: Annotated[str | None, typer.Option(help="Column that orders each user's interactions.")] = None,
    rating: Annotated[str | None, typer.Option(help="Column of ratings or weights.")] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    k_core: Annotated[
        int | None, typer.Option(help="Keep users and items with at least this many interactions.")
    ] = None,
    duplicates: Annotated[str, typer.Option(help="Of repeated user-item pairs: keep, first or last.")] = "keep",
    items: Annotated[str | None, typer.Option(help="Table that describes items.")] = None,
    title: Annotated[str | None, typer.Option(help="Its column with a readable name.")] = None,
    users: Annotated[str | None, typer.Option(help="Table that describes users.")] = None,
    social: Annotated[str | None, typer.Option(help="Table of links between users.")] = None,
    kg: Annotated[str | None, typer.Option(help="Table of triples head, relation, tail.")] = None,
    item_entity: Annotated[str | None, typer.Option(help="Table that links items to entities of the graph.")] = None,
    splits: Annotated[str | None, typer.Option(help="Table user, item, split (train, valid, test).")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files; UTF-8 if not given.")] = None,
    separator: Annotated[str | None, typer.Option(help="Of text files; detected if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a table of interactions into a dataset."""
    from rediffuse.readers import read_atomic, read_interactions

    # Options that were not given are left to the reader, which knows the same defaults.
    others = ("source", "out", "as_json")
    options = {
        name: value for name, value in context.params.items() if name not in others and _was_given(context, name)
    }
    is_atomic = source.endswith(".inter") or (Path(source).is_dir() and any(Path(source).glob("*.inter")))
    made = (read_atomic if is_atomic else read_interactions)(source, **options)
    made.save(out)
    _report(made, out, as_json)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"  # an enum of click, or of typer's copy of it


def _report(made: Dataset, out: Path, as_json: bool) -> None:
    lengths = made.interactions.lengths[: made.num_users]
    facts: dict[str, Any] = {
        "path": str(out),
        "users": made.num_users,
        "items": made.num_items,
        "interactions": made.num_interactions,
        "timestamps": made.has_timestamps,
        "median_history": float(sorted(lengths)[len(lengths) // 2]),
        "given_splits": sorted(made.given),
        "social_links": 0 if made.social is None else len(made.social),
        "knowledge_triples": 0 if made.kg is None else len(made.kg),
        "fingerprint": made.fingerprint,
        "report": made.report,
    }

    def print_table() -> None:
        listing = table(f"Dataset {out}", "", "")
        for name in ("users", "items", "interactions", "median_history", "social_links", "knowledge_triples"):
            listing.add_row(name.replace("_", " "), f"{facts[name]:,.0f}")
        listing.add_row("timestamps", "yes" if made.has_timestamps else "no")
        listing.add_row("given splits", ", ".join(facts["given_splits"]) or "none")
        print_rich(listing, *(f"- {note}" for note in made.report.get("notes", [])))

    emit(facts, as_json, print_table)
