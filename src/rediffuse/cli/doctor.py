"""The command that describes this machine and installation."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table

# Optional package -> the extra that installs it.
EXTRAS = {
    **{"tensorboard": "track", "plotly": "report", "jinja2": "report", "optuna": "tune"},
    **{"fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "faiss": "ann"},
    **{"onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
}


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print versions, hardware, numeric precision and missing extras."""
    import torch

    from rediffuse.runs.environment import environment
    from rediffuse.training.precision import resolve_precision

    found = environment()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    result: dict[str, Any] = {
        **found,
        "memory_gib": _memory_gib(),
        "device": str(device),
        "precision": resolve_precision("auto", torch.device(device or "cpu")),
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
