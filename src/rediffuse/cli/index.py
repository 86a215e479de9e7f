"""The command that builds a run's index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, show


@app.command()
def index(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    kind: Annotated[str, typer.Option(help="ivf, clusters; or hnsw, a graph: slow to build.")] = "ivf",
    recall: Annotated[float, typer.Option(help="Share of the exact best items that it is to find.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="Items per list that the recall is of.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Build an approximate index for fast answers over many items; its measured recall goes into the model card."""
    from rediffuse.errors import ConfigError
    from rediffuse.recommender.index_building import build_index

    if kind not in ("hnsw", "ivf"):
        raise ConfigError(f"--kind is {kind!r}.", "Give hnsw or ivf.")
    chosen: Literal["hnsw", "ivf"] = "ivf" if kind == "ivf" else "hnsw"
    facts = {"run": str(run), **build_index(run, chosen, k, recall)}

    def for_people() -> None:
        show(
            f"{chosen} index of {facts['items']:,} items in {run}: it finds {facts['recall']:.2%} of the exact best "
            f"{facts['k']}, in {facts['ms_per_query']} ms per person; exact search takes "
            f"{facts['exact_ms_per_query']} ms. It takes {facts['bytes'] / 2**20:,.1f} MiB."
        )
        show(f'Use it: rd.Recommender.load("{run}", retrieval="index"), or rediffuse serve {run} --retrieval index')

    answer(facts, as_json, for_people)
