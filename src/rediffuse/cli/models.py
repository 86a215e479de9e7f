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
    """List all models, built-in and from installed packages; or the options and presets of one."""
    from rediffuse.cli.model_table import entry
    from rediffuse.config import ModelConfig
    from rediffuse.models import model_class, names
    from rediffuse.models.external import class_path

    described: dict[str, Any] = {}
    for listed in names() if name is None else [name]:
        try:
            kind = model_class(listed)
        except ConfigError as error:  # a broken model of another package; the others are listed
            if name is not None:
                raise
            warnings.warn(str(error), RediffuseWarning, stacklevel=1)
            continue
        defaults = kind.Config.build().model_dump(mode="json")
        # Options of the training loop have no effect on a model in closed form.
        ignored = set() if kind.trained_by_gradient else set(ModelConfig.model_fields) - {"metric"}
        about = entry(kind)
        described[listed] = {
            "kind": about.kind,
            "needs": list(about.needs),
            "description": about.line,
            "ablation": "diffusion=false" if "diffusion" in kind.Config.model_fields else None,
            "class": class_path(kind),
            "presets": kind.Config.preset_names(),
            "options": {
                option: {"default": defaults[option], "description": field.description}
                for option, field in kind.Config.model_fields.items()
                if option not in ignored
            },
        }

    def print_list() -> None:
        listing = table("Models", "name", "kind", "needs", "")
        for column in listing.columns[1:]:
            column.justify = "left"
        listing.columns[0].no_wrap = True
        for title, model in described.items():
            listing.add_row(title, model["kind"], ", ".join(model["needs"]), model["description"])
        print_rich(listing)
        ablations = ", ".join(title for title, model in described.items() if model["ablation"])
        print_rich(f"Ablations (no diffusion): --set diffusion=false with {ablations}.")
        print_rich("Options and presets of one: rediffuse models NAME")

    def print_one() -> None:
        ((title, model),) = described.items()
        needs = f"Needs: {', '.join(model['needs'])}. " if model["needs"] else ""
        print_rich(f"{title} ({model['kind']}). {model['description']} {needs}".strip())
        listing = table(f"{title} (presets: {', '.join(model['presets'])})", "option", "default", "")
        listing.columns[2].justify = "left"
        for option, field in model["options"].items():
            listing.add_row(option, str(field["default"]), field["description"] or "")
        print_rich(listing)

    emit(described, as_json, print_list if name is None else print_one)
