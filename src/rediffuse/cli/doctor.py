"""The command that describes this machine and installation."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.estimates import print_estimates
from rediffuse.cli.output import emit, print_rich, table
from rediffuse.errors import ConfigError

DEFAULT_MODELS = ("sasrec", "diffurec")  # whose training doctor estimates
# Optional package -> the extra that installs it.
EXTRAS = {
    **{"tensorboard": "track", "wandb": "wandb", "mlflow": "mlflow"},
    **{"plotly": "report", "jinja2": "report", "optuna": "tune"},
    **{"fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "faiss": "ann", "s3fs": "cloud"},
    **{"onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
    **{"ray": "ray", "codecarbon": "energy"},
}


@app.command()
def doctor(
    data: Annotated[
        Path | None, typer.Option(help="Folder of a dataset: say about how long models would train on it here.")
    ] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help="With --data; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print versions, hardware, numeric precision and missing extras; with --data, about how long training takes."""
    if models and data is None:
        raise ConfigError("--model needs the data to measure it on.", "Add --data DATASET.")
    if data is not None:
        from rediffuse.cli.splits import read_split
        from rediffuse.training import estimate

        split = read_split("default", data)
        print_estimates([estimate(model, split) for model in models or DEFAULT_MODELS], as_json)
        return
    _describe_machine(as_json)


def _describe_machine(as_json: bool) -> None:
    import torch

    from rediffuse import devices
    from rediffuse.runs.environment import environment
    from rediffuse.training.precision import resolve_precision

    found = environment()
    device = devices.resolve("auto")
    result: dict[str, Any] = {
        **found,
        "memory_gib": _memory_gib(),
        "device": str(device),
        "devices": [devices.description(torch.device(name)) for name in devices.available()],
        "precision": resolve_precision("auto", device),
        "missing_extras": {p: extra for p, extra in EXTRAS.items() if importlib.util.find_spec(p) is None},
        "data_folder": os.environ.get("REDIFFUSE_DATA"),
    }

    def print_summary() -> None:
        listing = table("This machine", "", "")
        for name in ("python", "platform", "processor", "cores", "threads", "memory_gib", "device", "precision"):
            listing.add_row(name.replace("_", " "), str(result[name]))
        for package, version in found["packages"].items():
            listing.add_row(package, version)
        print_rich(listing)
        if device.type != "cpu":
            print_rich(
                f"Found {', '.join(result['devices'])}. Training uses {device}; evaluate, recommend, serve and index "
                "use the CPU unless you give --device auto."
            )
        for package, extra in result["missing_extras"].items():
            print_rich(f"{package} is not installed. If you need it: pip install 'rediffuse[{extra}]'")
        if not result["data_folder"]:
            print_rich("REDIFFUSE_DATA is not set, so public data sets are downloaded from their publishers.")

    emit(result, as_json, print_summary)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, AttributeError, OSError):
        return None
