"""The command that lists models and their options."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table
from rediffuse.errors import ConfigError, RediffuseWarning


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model; without it, all are listed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Models, their presets and their options: the built-in ones, and those of installed packages."""
    from rediffuse.models import model_class, names
    from rediffuse.models.external import class_path

    facts: dict[str, Any] = {}
    for listed in names() if name is None else [name]:
        try:
            kind = model_class(listed)
        except ConfigError as error:  # of another package; the others are listed all the same
            if name is not None:
                raise
            warnings.warn(str(error), RediffuseWarning, stacklevel=1)
            continue
        defaults = kind.Config.build().model_dump(mode="json")
        facts[listed] = {
            "class": class_path(kind),
            "presets": kind.Config.preset_names(),
            "options": {
                option: {"default": defaults[option], "description": field.description}
                for option, field in kind.Config.model_fields.items()
            },
        }

    def print_summary() -> None:
        for title, fact in facts.items():
            listing = table(f"{title} (presets: {', '.join(fact['presets'])})", "option", "default", "")
            listing.columns[2].justify = "left"
            for option, field in fact["options"].items():
                listing.add_row(option, str(field["default"]), field["description"] or "")
            print_rich(listing)

    emit(facts, as_json, print_summary)
