"""Commands that read data: `rediffuse data` and `rediffuse prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table

if TYPE_CHECKING:
    from rediffuse.data.dataset import Dataset

ItemFeatures = Annotated[
    str | None,
    typer.Option(
        help="Columns of the item table that models may learn from, with their kinds (category, number, text, vector), "
        'or without, to guess: "category,brand,price,title:text,image:vector".'
    ),
]
UserFeatures = Annotated[str | None, typer.Option(help="The same for the user table.")]


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A public data set; without it, all are listed.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write the dataset to.")] = None,
    from_folder: Annotated[
        Path | None, typer.Option("--from", help="Folder of files that the authors of a paper released.")
    ] = None,
    item_features: ItemFeatures = None,
    user_features: UserFeatures = None,
    as_json: AsJson = False,
) -> None:
    """Get a public data set, for example: rediffuse data ml-100k -o data/ml-100k"""
    from rediffuse.errors import ConfigError
    from rediffuse.readers import public_datasets, research

    if name is None:
        known, released = list(public_datasets.public_dataset_names()), [*sorted(research.SETS), *research.FORMS]
        if from_folder is not None:
            remedy = f"One of {', '.join(released)}: rediffuse data NAME --from {from_folder} -o OUT"
            raise ConfigError(f"--from {from_folder} was given without the name of a data set.", remedy)
        lines = [*known, "", "With --from FOLDER, from files that authors released:", ", ".join(released)]
        emit({"names": known, "from_folder": released}, as_json, lambda: print_rich("\n".join(lines)))
        return
    if out is None:
        raise ConfigError("No folder was given for the dataset.", f"Name one: rediffuse data {name} -o data/{name}")
    made = public_datasets.public_dataset(name, from_folder=from_folder).with_features(item_features, user_features)
    made.save(out)
    _report(made, out, as_json)


@app.command()
def prepare(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV or Parquet file(s), RecBole .inter file or folder, or folder of numbered tables."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the dataset to.")],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    time: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    time_format: Annotated[
        str | None, typer.Option(help='Form of times that are not ISO text, for example "%d/%m/%Y %H:%M".')
    ] = None,
    time_unit: Annotated[
        str | None,
        typer.Option(
            help="What times count since 1970: seconds, milliseconds, ..., days; default: inferred, and said."
        ),
    ] = None,
    order: Annotated[str | None, typer.Option(help="Column that orders each user's interactions.")] = None,
    rating: Annotated[str | None, typer.Option(help="Column of ratings or weights.")] = None,
    event_type: Annotated[
        str | None, typer.Option(help="Column of types of interactions, for --weights and --target-event.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help='Weight of each type, read as the rating; 0 drops: "view=1,purchase=5,error=0".')
    ] = None,
    target_events: Annotated[
        list[str] | None,
        typer.Option("--target-event", help="Only this type is truth in validation and test; may be repeated."),
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    k_core: Annotated[
        int | None, typer.Option(help="Keep users and items with at least this many interactions.")
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="What to do with repeated user-item pairs: keep all, or the first or last.")
    ] = "keep",
    missing_ids: Annotated[
        str,
        typer.Option(help="Rows whose id is empty or a word such as NULL: refuse, drop, or keep the word as an id."),
    ] = "refuse",
    item_separator: Annotated[
        str | None,
        typer.Option(
            help='What separates items where the item column holds lists in text, or "none" if these are ids.'
        ),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Table that describes items.")] = None,
    title: Annotated[str | None, typer.Option(help="Column of the item table with a readable name.")] = None,
    users: Annotated[Path | None, typer.Option(help="Table that describes users.")] = None,
    item_features: ItemFeatures = None,
    user_features: UserFeatures = None,
    social: Annotated[Path | None, typer.Option(help="Table of links between users.")] = None,
    kg: Annotated[Path | None, typer.Option(help="Table of triples: head, relation, tail.")] = None,
    item_entity: Annotated[Path | None, typer.Option(help="Table that links items to entities of the graph.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Table with the columns user, item and split (train, valid or test).")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of text files; default: UTF-8.")] = None,
    separator: Annotated[str | None, typer.Option(help="Separator of text files; default: detected.")] = None,
    quoting: Annotated[
        str, typer.Option(help="Quotes in text files: standard, or none: they are characters like any other.")
    ] = "standard",
    no_header: Annotated[
        bool, typer.Option("--no-header", help="Text files have no header; columns are named by place: 0, 1, ...")
    ] = False,
    decimal: Annotated[str | None, typer.Option(help='Decimal sign of numbers in text files: "." or ",".')] = None,
    format: Annotated[
        str, typer.Option(help="Of the interactions: table, or adjacency (a text file of lines: user item item ...).")
    ] = "table",
    as_json: AsJson = False,
) -> None:
    """Turn a table of interactions into a dataset."""
    from rediffuse.readers import read_atomic, read_interactions
    from rediffuse.readers.tables import is_numbered

    # Options that were not given are left to the reader, which knows the same defaults.
    others = ("source", "out", "as_json")
    options = {
        name: value for name, value in context.params.items() if name not in others and _was_given(context, name)
    }
    if is_numbered(source):
        made = _read_numbered(source, out, options)
        made.save(out)
        _report(made, out, as_json)
        return
    if options.pop("no_header", False):
        options["header"] = None
    if weights is not None:
        options["weights"] = _parse_weights(weights)
    is_atomic = source.suffix == ".inter" or (source.is_dir() and any(source.glob("*.inter")))
    made = (read_atomic if is_atomic else read_interactions)(source, **options)
    made.save(out)
    _report(made, out, as_json)


def _read_numbered(folder: Path, out: Path, options: dict[str, Any]) -> Dataset:
    """The dataset of numbered tables, with its interactions in a temporary file beside ``out``."""
    from rediffuse.data.store import refuse_foreign
    from rediffuse.errors import ConfigError
    from rediffuse.objects.folders import output
    from rediffuse.readers import read_numbered

    for name in options:
        if name not in ("title", "item_features", "user_features"):
            raise ConfigError(
                f"--{name.replace('_', '-')} does not go with {folder}, a folder of numbered tables.",
                "Leave it out: whatever it asks for is done where the tables are made, see docs/large-tables.md.",
            )
    refuse_foreign(out)
    return read_numbered(folder, **options, scratch=output("--out", out).folder.absolute().parent)


def _parse_weights(text: str) -> dict[str, float]:
    from rediffuse.errors import ConfigError

    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.rpartition("="))
        try:
            value = float(weight)
        except ValueError:
            value = None
        if not name or value is None or name in weights:
            problem = "is named twice" if name in weights else "is not of the form type=number"
            raise ConfigError(f"--weights {text!r}: {part.strip()!r} {problem}.", 'For example: "view=1,purchase=5".')
        weights[name] = value
    return weights


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"  # an enum of click, or of typer's copy of it


def _report(made: Dataset, out: Path, as_json: bool) -> None:
    lengths = made.interactions.lengths[: made.num_users]
    result: dict[str, Any] = {
        "path": str(out),
        "users": made.num_users,
        "items": made.num_items,
        "interactions": made.num_interactions,
        "target_interactions": made.num_targets,
        "timestamps": made.has_timestamps,
        "median_history": float(sorted(lengths)[len(lengths) // 2]),
        "given_splits": sorted(made.given),
        "social_links": 0 if made.social is None else len(made.social),
        "knowledge_triples": 0 if made.kg is None else len(made.kg),
        "item_features": [str(feature) for feature in made.item_features],
        "user_features": [str(feature) for feature in made.user_features],
        "fingerprint": made.fingerprint,
        "report": made.report,
    }

    def print_table() -> None:
        listing = table(f"Dataset {out}", "", "")
        for name in ("users", "items", "interactions", "median_history", "social_links", "knowledge_triples"):
            listing.add_row(name.replace("_", " "), f"{result[name]:,.0f}")
        listing.add_row("timestamps", "yes" if made.has_timestamps else "no")
        listing.add_row("given splits", ", ".join(result["given_splits"]) or "none")
        for name in ("item_features", "user_features"):
            if result[name]:
                listing.add_row(name.replace("_", " "), ", ".join(result[name]))
        print_rich(listing, *(f"- {note}" for note in made.report.get("notes", [])))

    emit(result, as_json, print_table)
