"""The command that recommends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.app import AsJson, Device, app
from rediffuse.cli.engines import Engine, Workers, uses_ray
from rediffuse.cli.explaining import because_as_text, find_paths, path_lines, share_lines
from rediffuse.cli.output import emit, print_rich, table
from rediffuse.cli.part_files import recommend_to_part_files
from rediffuse.cli.rules import chosen_items, find_names, parse_max_per

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.recommender import Recommender


# How text begins that spreadsheets compute. The last four are the first four in full width, as some locales write them.
_FORMULA = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    history: Annotated[
        list[str] | None, typer.Option(help='Ids or titles, oldest first: "a|b|c"; may be repeated, oldest first.')
    ] = None,
    user: Annotated[list[str] | None, typer.Option(help="Id of a known user; may be repeated.")] = None,
    users: Annotated[
        Path | None, typer.Option(help="User file: CSV or Parquet with a column user_id, and optionally history.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Items per user.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help='Ids or titles not to recommend: "a|b"; may be repeated.')
    ] = None,
    exclude_file: Annotated[
        Path | None, typer.Option(help="Items not to recommend: a text, CSV or Parquet file with a column item_id.")
    ] = None,
    candidates: Annotated[Path | None, typer.Option(help="The only items to recommend: a file as above.")] = None,
    item_filter: Annotated[
        str | None,
        typer.Option(
            "--filter", help="Condition on columns of the item table: \"category == 'shoes' and price < 50\"."
        ),
    ] = None,
    max_per: Annotated[
        list[str] | None, typer.Option(help="The most items of one value per list: category=2; may be repeated.")
    ] = None,
    diversity: Annotated[
        float | None, typer.Option(help="0 to 1: weight of the whole list against the relevance of its items.")
    ] = None,
    diversity_by: Annotated[
        str | None, typer.Option(help="Column whose values say how items resemble each other; default: item vectors.")
    ] = None,
    slate: Annotated[
        str | None,
        typer.Option(
            help="How --diversity judges lists: mmr (default), dpp, or calibrated to the history by the column."
        ),
    ] = None,
    new_items: Annotated[
        float, typer.Option(help="0 to 1: least share of each list that is items without an interaction in training.")
    ] = 0.0,
    temperature: Annotated[
        float | None, typer.Option(help="Of the preference that guides d3rec; above 1: more categories.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Weight of that guidance; -1: none.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: calibrated.")] = None,
    noise: Annotated[float, typer.Option(help="Factor on the noise of a stochastic model.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise of a stochastic model.")] = 0,
    samples: Annotated[int, typer.Option(help="Draws of a stochastic model to average.")] = 1,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Do not filter items of the history.")] = False,
    explain: Annotated[
        bool, typer.Option(help="Say what each score is made of (heat, transition, theat), or show paths (diffkg).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .parquet or .csv file, or a folder for part files.")
    ] = None,
    guard_formulas: Annotated[
        bool,
        typer.Option("--guard-formulas", help="Begin text in a .csv file that a spreadsheet would compute with a '."),
    ] = False,
    rows_per_part: Annotated[int | None, typer.Option(min=1, help="Users per part file; default: 50000.")] = None,
    engine: Engine = None,
    workers: Workers = None,
    quoting: Annotated[
        str, typer.Option(help="Quotes in files of text: standard, or none: they are characters like any other.")
    ] = "standard",
    no_header: Annotated[
        bool, typer.Option("--no-header", help="Files of text have no header: ids come first, then histories.")
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Recommend items to known users, or for any history."""
    from rediffuse.errors import ConfigError
    from rediffuse.readers.text_files import TextOptions
    from rediffuse.recommender import Recommender
    from rediffuse.recommender.user_files import UserFile

    text = TextOptions(quoting=quoting, header=None if no_header else 0)
    with_ray = uses_ray(engine, workers)
    if (users is None) == (not history and not user):
        raise ConfigError(
            "Give either --users, or --user or --history.",
            'For example --history "a|b", --user ID or --users FILE. --user ID --history "a|b" is that history for ID.',
        )
    if history and len(user or []) > 1:
        raise ConfigError(f"--history is one history, and --user names {len(user or [])} users.", "Give one user.")
    options = {
        "k": k,
        "seed": seed,
        "samples": samples,
        "filter_seen": not keep_seen,
        "sampling_steps": steps,
        "noise": noise,
        "filter": item_filter,
        "max_per": parse_max_per(max_per),
        "diversity": diversity,
        "diversity_by": diversity_by,
        "slate": slate,
        "new_items": new_items,
        "temperature": temperature,
        "guidance_scale": guidance_scale,
    }

    def choose(recommender: Recommender) -> dict[str, Any]:
        return chosen_items(recommender, exclude, exclude_file, candidates, text)

    if guard_formulas and (out is None or out.suffix != ".csv" or out.is_dir()):
        raise ConfigError("--guard-formulas is for a .csv file.", "Give one with -o, or leave the option out.")
    if out is not None and (out.is_dir() or out.suffix not in (".parquet", ".csv")):
        if out.suffix and not out.exists():
            raise ConfigError(
                f"{out} is neither .parquet nor .csv.",
                "Use one of the two extensions, or none for a folder of part files (or create the folder first).",
            )
        if users is None:
            raise ConfigError(f"{out} is a folder, which needs --users FILE.", "Give a .parquet or .csv file.")
        options |= {"explain": explain, "text": text}
        if rows_per_part is not None:
            options["rows_per_part"] = rows_per_part
        recommend_to_part_files(run, users, out, choose, options, with_ray, workers, as_json, device)
        return
    if with_ray:
        raise ConfigError("--engine writes a folder of part files.", "Give a folder with -o, or leave the option out.")
    if rows_per_part is not None:
        raise ConfigError(
            "--rows-per-part is for a folder of part files.", "Give a folder with -o, or leave the option out."
        )
    recommender = Recommender.load(run, device=device)
    with_paths = explain and recommender.has_paths and not recommender.model.explains_scores
    if with_paths and (users or out or len(user or []) > 1):
        raise ConfigError(
            f"{recommender.config['model']} explains by paths, one list at a time.",
            'Use it with --history "a|b" or --user ID.',
        )
    ids, histories = user, None
    if users is not None:
        user_file = UserFile(users, recommender.is_known_user, recommender.titles.ids_in_text, text)
        if not user_file.has_histories:
            recommender.require_users()
        ids, histories = user_file.read()
    asked = find_names(recommender, history) if history else None
    if asked is not None:
        histories = [asked]
    found = recommender.recommend(
        users=ids,
        histories=histories,
        explain=explain and not with_paths,
        **choose(recommender),
        **options,
    )
    if out is not None:
        _write(found, out, guard_formulas)
    written = {"rows": len(found), "out": str(out)}
    result = written if out is not None else {"run": str(run), "recommendations": found.to_dicts()}
    lines: list[str] = []
    if with_paths:
        paths = find_paths(recommender, found["item_id"], asked, user)
        result["paths"] = paths.to_dicts()
        lines = path_lines(recommender, paths)
    elif explain and out is None:
        lines = share_lines(found)

    def print_summary() -> None:
        if out is not None:
            print_rich(f"{len(found):,} rows written to {out}.")
            return
        shown = found.drop("because", strict=False)
        listing = table("Recommendations", *(name for name in shown.columns))
        for row in shown.iter_rows():
            listing.add_row(*(_number(value) if isinstance(value, float) else str(value) for value in row))
        print_rich(listing)
        for line in lines:
            print_rich(line)

    emit(result, as_json, print_summary)


def _number(value: float) -> str:
    """A score; the masses of a diffusion may be small numbers."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4g}"


def _write(frame: pl.DataFrame, path: Path, guard_formulas: bool) -> None:
    import polars as pl

    from rediffuse.addresses import address_of
    from rediffuse.files import atomic_write_bytes, parquet_bytes
    from rediffuse.objects.store import put_bytes

    if path.suffix == ".parquet":
        content = parquet_bytes(frame)
    else:
        frame = because_as_text(frame)
        if guard_formulas:
            formula = pl.col(pl.String).str.contains(_FORMULA)
            frame = frame.with_columns(
                pl.when(formula).then("'" + pl.col(pl.String)).otherwise(pl.col(pl.String)).name.keep()
            )
        content = frame.write_csv().encode()
    if (address := address_of(path)) is not None:
        put_bytes(content, address)
    else:
        atomic_write_bytes(path, content)
