"""The command line. Commands import heavy modules when they run, so ``rediffuse --help`` is fast."""

from __future__ import annotations

import io
import os
import sys
import warnings

from rediffuse.cli import (  # noqa: F401 (importing a module registers its command)
    add_items,
    augment,
    blend,
    compare,
    data,
    data_report,
    doctor,
    evaluate,
    experiment,
    export,
    index,
    models,
    push,
    recommend,
    refit,
    serve,
    train,
    tune,
    update,
    update_histories,
)
from rediffuse.cli.app import app
from rediffuse.cli.output import fail, print_warning
from rediffuse.errors import RediffuseError, RediffuseWarning

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command ``rediffuse``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal's encoding lacks are no reason to fail
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("always", RediffuseWarning)
    warnings.showwarning = print_warning
    if "" not in sys.path and not sys.flags.safe_path:
        sys.path.append("")  # module:Class is looked for in the current directory too, as python -m does
    if "RANK" in os.environ:
        # Messages of torch's C++ code about networks and buckets would bury ours.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except RediffuseError as error:
        fail(error, as_json="--json" in sys.argv)
        sys.exit(2)
    except OSError as error:
        # Most system errors are reported where they occur. A pipe that the reader has closed is not an error of ours.
        if isinstance(error, BrokenPipeError) or error.errno is None:
            raise
        from rediffuse.files import storage_error

        fail(storage_error(f"{error.filename or 'A file'} cannot be read or written", error), "--json" in sys.argv)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
