"""The model card: a run's README.md."""

from __future__ import annotations

from typing import Any


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
        f"- Leaks: {split['leak'] or 'none known; training is strictly earlier than the test subset.'}",
        f"- Selected by {options['metric']} on the validation subset, best at epoch {training['best_epoch']}.",
        *_refit_line(training.get("refitted")),
        f"- {training['minutes']:.1f} minutes on {environment['processor']} with {environment['threads']} threads, "
        f"{training['precision']}, {training['parameters']:,} parameters, seed {run_config['seed']}.",
        *(f"- {name}: {value}" for name, value in run_config["resolved"].items()),
        "",
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


def _refit_line(refitted: bool | str | None) -> list[str]:
    """A line on what was refitted: the model (True), a part of it (its name), or nothing."""
    if not refitted:
        return []
    what = "Refitted" if refitted is True else f"The {refitted} was refitted"
    return [f"- {what} with the validation interactions, after all choices."]


def _class_line(run_config: dict[str, Any]) -> list[str]:
    """A line that says where the class of the model is, unless it is built in."""
    distribution = run_config["distribution"]
    if distribution is None:
        return [f"- Model class: `{run_config['class']}`, which must be importable to use this run."]
    if distribution["name"] == "rediffuse":
        return []
    return [f"- Model class: `{run_config['class']}`, from {distribution['name']} {distribution['version']}."]
