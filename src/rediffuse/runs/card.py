"""The model card: a run's README.md, which is also its page on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from rediffuse.config import WITH_HISTORY, ModelConfig, selected_value
from rediffuse.data.cold_users import users_text, without_text
from rediffuse.models.base import Model

# What a card calls the place of its run; `rediffuse.push` writes the address on the hub there.
THIS_RUN = "this folder"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n+", flags=re.MULTILINE | re.DOTALL)
# Metrics of the front matter, where a run has them.
_HEADLINE = ("hr@10", "ndcg@10", "recall@20")
_POLICIES = {"all": "seen items kept", "unseen": "seen items filtered"}


def duration(minutes: float) -> str:
    """A time as text: in seconds below two minutes."""
    return f"{60 * minutes:.1f} seconds" if minutes < 2 else f"{minutes:.1f} minutes"


def model_card(kind: type[Model], run_config: dict[str, Any], environment: dict[str, Any]) -> str:
    """Describe a run in Markdown: what it is, how it was trained and selected, and how to use it.

    Args:
        kind: class of the model.
        run_config: content of config.json.
        environment: content of environment.json.
    """
    split, training = run_config["split"], run_config["training"]
    title = f"# {run_config['model']}" + (f" ({run_config['preset']} preset)" if run_config["preset"] else "")
    resolved = run_config["resolved"]
    lines = [
        title,
        "",
        *_what_it_is(kind, run_config),
        *_what_it_learned_from(run_config, environment),
        "```python",
        "import rediffuse as rd",
        "",
        f'recommender = rd.Recommender.load("{THIS_RUN}")',
        'recommender.recommend(histories=[["an item id", "another"]], k=10)',
        "```",
        "",
        "## How it was trained",
        "",
        *_class_line(run_config),
        *([] if "updated_from" in run_config else [f"- Split: {_split(split)}."]),
        *([f"- Histories end at {end}."] if (end := run_config["data"].get("histories_end")) else []),
        *_leak_line(split),
        *_origin(run_config),
        *_refit_line(training.get("refitted")),
        f"- {duration(training['minutes'])} on {environment['processor']} with {environment['threads']} threads"
        + (f", {training['precision']}, {training['parameters']:,} parameters" if training["parameters"] else "")
        + f", seed {run_config['seed']}.",
        *_resolved(resolved),
        *_noise(run_config.get("noise", [])),
        "",
        *_curve(resolved.get("curve") or resolved.get("prior", {}).get("curve") or []),
        *_validation(run_config["validation"]),
        *_options(kind, run_config),
    ]
    validation = run_config["validation"] or {}
    measured = {
        f"{name} ({label})": validation[key]
        for policy, label in _POLICIES.items()
        for name in _HEADLINE
        if (key := name if policy == "all" else f"{name}/{policy}") in validation
    }
    return _with_front_matter("\n".join(lines), _metadata(run_config, "validation", measured))


def with_section(card: str, heading: str, lines: Iterable[str]) -> str:
    """The model card with a section at its end, which replaces an older one of the same heading."""
    section = rf"\n*^## {re.escape(heading)}\n.*?(?=^## |\Z)"
    others = re.sub(section, "\n\n", card, flags=re.MULTILINE | re.DOTALL).strip()
    return "\n".join([others, *([""] if others else []), f"## {heading}", "", *lines, ""])


def with_test(card: str, run_config: dict[str, Any], result: dict[str, Any]) -> str:
    """The model card with the test metrics that `rediffuse.evaluate` returned, also in its front matter."""
    policies = [policy for policy in _POLICIES if policy in result["metrics"]]
    metrics = {policy: result["metrics"][policy] for policy in policies}
    names = [name for name in metrics[policies[0]] if all(name in values for values in metrics.values())]
    draws = len(result["sampling_seeds"])
    averaged = f"They are means over {draws} draws of the noise. " if draws > 1 else ""
    lines = [
        f"Split {result['split']}, protocol {result['protocol']['name']}, {users_text(result['counts'])}, "
        f"{without_text(result['counts'])}, measured on {result['date']}. {averaged}The whole result is in test.json.",
        "",
        "| metric | " + " | ".join(_POLICIES[policy] for policy in policies) + " |",
        "|---|" + "--:|" * len(policies),
        *(f"| {name} | {' | '.join(_number(metrics[policy][name]) for policy in policies)} |" for name in names),
    ]
    own = {
        f"{name} ({_POLICIES[policy]})": metrics[policy][name]
        for policy in policies
        for name in _HEADLINE
        if name in metrics[policy]
    }
    metadata = _metadata(run_config, "test", own)
    return _with_front_matter(with_section(without_front_matter(card), "Test", lines), metadata)


def without_front_matter(card: str) -> str:
    """The model card as Markdown alone."""
    return _FRONT_MATTER.sub("", card, count=1)


# --- front matter ------------------------------------------------------------------------------------------


def _metadata(run_config: dict[str, Any], subset: str, measured: dict[str, float]) -> dict[str, Any]:
    """What the Hugging Face hub reads. It has no task for recommendation, and the licence depends on the data.

    Args:
        run_config: content of config.json.
        subset: what the metrics were measured on.
        measured: the value of each metric, by its name and policy.
    """
    data, name = run_config["data"], run_config["model"]
    metadata: dict[str, Any] = {"library_name": "rediffuse", "tags": ["recommendation", "recommender-system", name]}
    if not measured:
        return metadata
    described = f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions"
    metrics = [{"type": key.partition(" ")[0], "name": key, "value": round(measured[key], 4)} for key in measured]
    results = {
        "task": {"type": "recommendation", "name": "Recommendation"},
        "dataset": {"type": "interactions", "name": described, "split": subset},
        "metrics": metrics,
    }
    metadata["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
    metadata["model-index"] = [{"name": name, "results": [results]}]
    return metadata


def _with_front_matter(card: str, metadata: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{card}"


# --- sections ----------------------------------------------------------------------------------------------


def _what_it_is(kind: type[Model], run_config: dict[str, Any]) -> list[str]:
    options = run_config["config"]
    lines = [kind.summary()] if kind.summary() else []
    if options.get("diffusion") is False:
        lines.append("This run is the ablation (no diffusion).")
    if options.get("prior", "none") != "none":
        lines.append(f"A prior from the item graph and recent popularity answers with it (`prior={options['prior']}`).")
    if described := run_config["data"].get("item_features"):
        named = ", ".join(f"{feature['column']} ({feature['kind']})" for feature in described["features"])
        lines.append(f"It also learned from features of the items: {named}.")
    if parts := run_config.get("blended"):
        named = [
            f"{part['model']} ({source['run']}, weight {_number(weight)})"
            for part, source, weight in zip(
                options["parts"], parts, run_config["resolved"]["settings"]["weights"], strict=True
            )
        ]
        lines.append(f"Its parts are {', '.join(named)}.")
    return [" ".join(lines), ""] if lines else []


def _what_it_learned_from(run_config: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    data = run_config["data"]
    subsets = data["subsets"]
    everything = run_config["training"].get("refitted") is True
    learned = subsets["before_test" if everything else "train"]
    made = f"with Rediffuse {environment['packages']['rediffuse']} on {run_config['created'][:10]}"
    synthetic = f" and {learned['synthetic']:,} synthetic ones" if learned["synthetic"] else ""
    text = (
        f"Trained {made} on {learned['interactions']:,} interactions{synthetic} of {learned['users']:,} users with "
        f"{learned['items']:,} items. It ranks {data['items']:,} items."
    )
    if added := run_config.get("items_added_to"):
        text += f" Of these, {added['items']:,} were added after the training, by their features alone."
    held = [
        f"{subsets[name]['interactions']:,} interactions of {subsets[name]['users']:,} users for {purpose}"
        for name, purpose in (("valid", "validation"), ("test", "the test"))
        if subsets[name]["interactions"] and not (everything and name == "valid")
    ]
    if held:
        text += f" Not among them: {' and '.join(held)}."
    return [text, ""]


def _split(split: dict[str, Any]) -> str:
    if split["name"] == "none":
        return "none; it has learned from all interactions"
    params = ", ".join(f"{name} = {_number(value)}" for name, value in split["params"].items())
    return split["name"] + (f" ({params})" if params else "")


def _leak_line(split: dict[str, Any]) -> list[str]:
    if split["name"] == "none":  # nothing is tested that could leak
        return []
    return [f"- Leaks: {split['leak'] or 'none known; training is strictly earlier than the test subset.'}"]


def _origin(run_config: dict[str, Any]) -> list[str]:
    """Lines on what chose the weights or options, and on what the run was made of."""
    metric, training = run_config["config"]["metric"], run_config["training"]
    lines: list[str] = []
    if (source := run_config.get("refit_of")) is not None:
        measured = source["validation"] or {}
        found = (
            f" with {metric} {selected_value(measured, metric):.4f} on validation data" if metric in measured else ""
        )
        tested = run_config["split"]["name"] != "none"
        learned = "the training and validation subsets" if tested else "all interactions"
        lines.append(
            f"- Chosen as {source['run']} (split {source['split']['name']}){found}, then trained on {learned}."
        )
        if tested:
            return lines
    if (source := run_config.get("updated_from")) is not None:
        lines.append(
            f"- Made from {source['run']} by adding {source['interactions']:,} new interactions. Its options and "
            "choices are those of that run."
        )
    if lines:
        return [*lines, "- It has no test figures of its own: those of the run that it was made of are an estimate."]
    if run_config["validation"] is None:
        return ["- Nothing was selected on validation data."]
    some = WITH_HISTORY + metric in run_config["validation"]
    chosen_on = "the validation users with a history" if some else "the validation subset"
    if run_config.get("blended"):
        return [f"- The weights of its parts were chosen by {metric} on {chosen_on}."]
    best = f", best at epoch {training['best_epoch']}" if training["best_epoch"] else ""
    return [f"- Selected by {metric} on {chosen_on}{best}."]


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
            lines.append(f"- Chosen on validation data: {_pairs(value)}.")
        elif name == "dropped":
            for graph, share in value.items():
                if share:
                    lines.append(f"- {share:.1%} of the mass of {graph} was left out (`neighbours`).")
        elif name == "prior":
            for part, choices in (("weights of the prior", value), ("theat", value["theat"])):
                lines.append(f"- Chosen on validation data, {part}: {_pairs(choices['settings'])}.")
        elif name not in ("curve", "parts"):
            shown = _pairs(value) if isinstance(value, dict) else _number(value)
            lines.append(f"- {name.replace('_', ' ').capitalize()}: {shown}.")
    return lines


def _noise(noise: list[dict[str, Any]]) -> list[str]:
    """Lines on how large what is noised is beside the noise."""
    lines = []
    for levels in noise:
        ratios = ", ".join(
            f"{_number(ratio)} at t = {t}" for t, ratio in zip(levels["timesteps"], levels["snr"], strict=True)
        )
        estimate = levels["estimate_rms"]
        beside = f" (of the network's estimate: {_number(estimate)})" if estimate is not None else ""
        lines.append(
            f"- Noised: {levels['what']}, root mean square {_number(levels['rms'])}{beside}; signal-to-noise ratio "
            f"{ratios}."
        )
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
        lines.append(f"| {' | '.join(mark + _number(record[name]) + mark for name in names)} |")
    return [*lines, ""] if lines else []


def _validation(validation: dict[str, float] | None) -> list[str]:
    if not validation:
        return []
    lines = ["## Validation", "", "| metric | seen items kept | seen items filtered |", "|---|--:|--:|"]
    metrics = [name for name in validation if not name.endswith("/unseen")]
    lines += [f"| {name} | {validation[name]:.4f} | {validation[name + '/unseen']:.4f} |" for name in metrics]
    note = "The whole catalogue is ranked; ties count against the model."
    if any(name.startswith(WITH_HISTORY) for name in metrics):
        note += f" `{WITH_HISTORY}` is over the users who have a history; the others all get one list, by popularity."
    return [*lines, "", note, ""]


def _options(kind: type[Model], run_config: dict[str, Any]) -> list[str]:
    """The options as YAML that ``--config`` accepts and that gives the same config; those without effect are left out.

    A blend has no options to train with: it is made of runs.
    """
    if "blended" in run_config:
        return []
    options = run_config["config"]
    if not kind.trained_by_gradient:
        # Options of the training loop have no effect on a model in closed form.
        unchanged = {
            name
            for name, default in kind.Config.build().model_dump(mode="json").items()
            if name in ModelConfig.model_fields and name != "metric" and options.get(name) == default
        }
        options = {name: value for name, value in options.items() if name not in unchanged}
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    return ["## Options", "", "```yaml", *text.splitlines(), "```", ""]


def _class_line(run_config: dict[str, Any]) -> list[str]:
    """A line that says where the class of the model is, unless it is built in."""
    distribution = run_config["distribution"]
    if distribution is None:
        return [f"- Model class: `{run_config['class']}`, which must be importable to use this run."]
    if distribution["name"] == "rediffuse":
        return []
    return [f"- Model class: `{run_config['class']}`, from {distribution['name']} {distribution['version']}."]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    """A value with at most four significant digits."""
    if isinstance(value, list | tuple):
        return f"({', '.join(_number(each) for each in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
