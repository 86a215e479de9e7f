"""The model card: a run's README.md."""

from __future__ import annotations

from typing import Any


def duration(minutes: float) -> str:
    """A time as text: in seconds below two minutes."""
    return f"{60 * minutes:.1f} seconds" if minutes < 2 else f"{minutes:.1f} minutes"


def model_card(run_config: dict[str, Any], environment: dict[str, Any]) -> str:
    """Describe a run in Markdown: what it is, how it was trained and selected, and how to use it.

    Args:
        run_config: content of config.json.
        environment: content of environment.json.
    """
    data, split, training = run_config["data"], run_config["split"], run_config["training"]
    options = run_config["config"]
    lines = [
        f"# {run_config['model']}" + (f" ({run_config['preset']} preset)" if run_config["preset"] else ""),
        "",
        f"A next-item recommender over {data['items']:,} items, trained on {data['users']:,} users and "
        f"{data['interactions']:,} interactions with Rediffuse {environment['packages']['rediffuse']} on "
        f"{run_config['created'][:10]}.",
        "",
        "```python",
        "import rediffuse as rd",
        'rd.Recommender.load("this folder").recommend(histories=[["an item id", "another"]], k=10)',
        "```",
        "",
        "## How it was trained",
        "",
        *_class_line(run_config),
        f"- Split: {split['name']} {split['params'] or ''}".rstrip(),
        *([f"- Histories end at {data['histories_end']}."] if data.get("histories_end") else []),
        f"- Leaks: {split['leak'] or 'none known; training is strictly earlier than the test subset.'}",
        *_selection(run_config),
        *_refit_line(training.get("refitted")),
        f"- {duration(training['minutes'])} on {environment['processor']} with {environment['threads']} threads"
        + (f", {training['precision']}, {training['parameters']:,} parameters" if training["parameters"] else "")
        + f", seed {run_config['seed']}.",
        *_resolved(run_config["resolved"]),
        "",
        *_curve(run_config["resolved"].get("curve") or run_config["resolved"].get("prior", {}).get("curve") or []),
    ]
    if validation := run_config["validation"]:
        lines += ["## Validation", "", "| metric | seen items kept | seen items filtered |", "|---|--:|--:|"]
        metrics = [name for name in validation if not name.endswith("/unseen")]
        lines += [f"| {name} | {validation[name]:.4f} | {validation[name + '/unseen']:.4f} |" for name in metrics]
        lines += [
            "",
            "The whole catalogue is ranked; ties count against the model. Test metrics, once measured: test.json.",
            "",
        ]
    lines += ["## Options", "", "```yaml", *(f"{name}: {value}" for name, value in options.items()), "```", ""]
    return "\n".join(lines)


def _selection(run_config: dict[str, Any]) -> list[str]:
    """Lines on what chose the weights, and on what learned from all interactions."""
    metric, training = run_config["config"]["metric"], run_config["training"]
    if (source := run_config.get("refit_of")) is not None:
        value = (source["validation"] or {}).get(metric)
        found = f" with {metric} {value:.4f} on validation data" if value is not None else ""
        lines = [
            f"- Chosen as {source['run']} (split {source['split']['name']}){found}, then trained on all interactions."
        ]
        return [*lines, "- It has no test figures of its own: those of the run that it was chosen as are an estimate."]
    if run_config["validation"] is None:
        return ["- Nothing was selected on validation data."]
    best = f", best at epoch {training['best_epoch']}" if training["best_epoch"] else ""
    return [f"- Selected by {metric} on the validation subset{best}."]


def _refit_line(refitted: bool | str | None) -> list[str]:
    """A line on what was refitted: the model (True), a part of it (its name), or nothing."""
    if not refitted:
        return []
    what = "Refitted" if refitted is True else f"The {refitted} was refitted"
    return [f"- {what} with the validation interactions, after all choices."]


def _resolved(resolved: dict[str, Any]) -> list[str]:
    """Lines on what was chosen on validation data, and on what truncation left out."""
    lines = []
    for name, value in resolved.items():
        if name == "settings":
            lines.append("- Chosen on validation data: " + ", ".join(f"{k} = {v}" for k, v in value.items()) + ".")
        elif name == "dropped":
            for graph, share in value.items():
                if share:
                    lines.append(f"- {share:.1%} of the mass of {graph} was left out (`neighbours`).")
        elif name == "prior":
            for part, choices in (("weights of the prior", value), ("theat", value["theat"])):
                chosen = ", ".join(f"{k} = {v}" for k, v in choices["settings"].items())
                lines.append(f"- Chosen on validation data, {part}: {chosen}.")
        elif name not in ("curve", "parts"):
            lines.append(f"- {name}: {value}")
    return lines


def _curve(curve: Any) -> list[str]:
    """Tables of the settings that were tried, one per group of options; the chosen row is bold."""
    if not isinstance(curve, list):
        return []
    lines: list[str] = []
    names: list[str] = []
    for record in curve:
        if [name for name in record if name != "chosen"] != names:
            names = [name for name in record if name != "chosen"]
            heading = [] if lines else ["## Choices on validation data"]
            lines += [*heading, "", f"| {' | '.join(names)} |", "|" + "--:|" * len(names)]
        mark = "**" if record.get("chosen") else ""
        values = (record[name] for name in names)
        cells = [mark + (f"{value:.4g}" if isinstance(value, float) else str(value)) + mark for value in values]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if lines else []


def _class_line(run_config: dict[str, Any]) -> list[str]:
    """A line that says where the class of the model is, unless it is built in."""
    distribution = run_config["distribution"]
    if distribution is None:
        return [f"- Model class: `{run_config['class']}`, which must be importable to use this run."]
    if distribution["name"] == "rediffuse":
        return []
    return [f"- Model class: `{run_config['class']}`, from {distribution['name']} {distribution['version']}."]
