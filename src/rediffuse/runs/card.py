"""The model card: a run's README.md."""

from __future__ import annotations

from typing import Any


def model_card(facts: dict[str, Any], made_with: dict[str, Any]) -> str:
    """Markdown that says what a run is, how it was selected, and how to use it."""
    data, split, training = facts["data"], facts["split"], facts["training"]
    changed = facts["config"]
    lines = [
        f"# {facts['model']}" + (f" ({facts['preset']} preset)" if facts["preset"] else ""),
        "",
        f"A next-item recommender over {data['items']:,} items, trained on {data['users']:,} users and "
        f"{data['interactions']:,} events with Rediffuse {made_with['packages']['rediffuse']} on {facts['created'][:10]}.",
        "",
        "```python",
        "import rediffuse as rd",
        'rd.Recommender.load("this folder").recommend(histories=[["an item id", "another"]], k=10)',
        "```",
        "",
        "## How it was made",
        "",
        *_class(facts),
        f"- Split: {split['name']} {split['params'] or ''}".rstrip(),
        f"- Leaks: {split['leak'] or 'none known; training is strictly earlier than the test subset.'}",
        f"- Selected by {changed['metric']} on the validation subset, best at epoch {training['best_epoch']}.",
        f"- {training['minutes']:.1f} minutes on {made_with['processor']} with {made_with['threads']} threads, "
        f"{training['precision']}, {training['parameters']:,} parameters, seed {facts['seed']}.",
        *(f"- {name}: {value}" for name, value in facts["resolved"].items()),
        "",
    ]
    if facts["validation"]:
        lines += ["## Validation", "", "| metric | seen items kept | seen items filtered |", "|---|--:|--:|"]
        plain = [name for name in facts["validation"] if not name.endswith("/unseen")]
        lines += [
            f"| {name} | {facts['validation'][name]:.4f} | {facts['validation'][name + '/unseen']:.4f} |"
            for name in plain
        ]
        lines += [
            "",
            "Whole catalogue ranked; ties count against the model. Test figures, once evaluated: test.json.",
            "",
        ]
    lines += ["## Options", "", "```yaml", *(f"{name}: {value}" for name, value in changed.items()), "```", ""]
    return "\n".join(lines)


def _class(facts: dict[str, Any]) -> list[str]:
    """Where the class of a model from another package is."""
    distribution = facts["distribution"]
    if distribution is None:
        return [f"- Model class: `{facts['class']}`, which must be importable to use this run."]
    if distribution["name"] == "rediffuse":
        return []
    return [f"- Model class: `{facts['class']}`, from {distribution['name']} {distribution['version']}."]
