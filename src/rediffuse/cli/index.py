"""The command that builds a run's index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rediffuse.cli.app import AsJson, Device, app
from rediffuse.cli.output import emit, print_rich


@app.command()
def index(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    kind: Annotated[str, typer.Option(help="ivf (clusters) or hnsw (a graph; slow to build).")] = "ivf",
    recall: Annotated[float, typer.Option(help="Target recall: share of the exact top k that the index finds.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="Length of the lists on which recall is measured.")] = 100,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Build an approximate index for large catalogues; the model card states its measured recall."""
    from rediffuse.errors import ConfigError
    from rediffuse.recommender.index_building import build_index

    if kind not in ("hnsw", "ivf"):
        raise ConfigError(f"--kind is {kind!r}.", "Give hnsw or ivf.")
    chosen: Literal["hnsw", "ivf"] = "ivf" if kind == "ivf" else "hnsw"
    result = {"run": str(run), **build_index(run, chosen, k, recall, device)}

    def print_summary() -> None:
        print_rich(
            f"{chosen} index of {result['items']:,} items in {run}: it finds {result['recall']:.2%} of the exact top "
            f"{result['k']}, in {result['ms_per_query']} ms per user; exact search takes "
            f"{result['exact_ms_per_query']} ms. Its size is {result['bytes'] / 2**20:,.1f} MiB."
        )
        print_rich(
            f'To use it: rd.Recommender.load("{run}", retrieval="index"), or rediffuse serve {run} --retrieval index'
        )

    emit(result, as_json, print_summary)
