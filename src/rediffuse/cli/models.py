"""The command that lists models and their options."""

from __future__ import annotations

from typing import Any

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, show, table


@app.command()
def models(as_json: AsJson = False) -> None:
    """All models, their presets and their options."""
    from rediffuse.models import model_class, names

    facts: dict[str, Any] = {}
    for name in names():
        config = model_class(name).Config
        facts[name] = {
            "presets": ["default", *config.presets],
            "options": {
                option: {"default": field.get_default(), "description": field.description}
                for option, field in config.model_fields.items()
            },
        }

    def for_people() -> None:
        for name, fact in facts.items():
            listing = table(f"{name} (presets: {', '.join(fact['presets'])})", "option", "default", "")
            listing.columns[2].justify = "left"
            for option, field in fact["options"].items():
                listing.add_row(option, str(field["default"]), field["description"] or "")
            show(listing)

    answer(facts, as_json, for_people)
