"""`blend`: several finished runs of one split, made into one."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterable
from pathlib import Path

from rediffuse.arguments import require_text
from rediffuse.data.cold_users import refuse_selection
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import as_dataset
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RunError
from rediffuse.memory import PeakMemory
from rediffuse.models.blend import Blend, BlendConfig
from rediffuse.models.placement import move
from rediffuse.objects.folders import output
from rediffuse.runs.identity import open_run_folder
from rediffuse.runs.run_folder import Run, RunContents, read_run, run_path
from rediffuse.runs.split_of import check_data, split_of
from rediffuse.training.loop import Trainer
from rediffuse.training.train import describe_run, write_files


def blend(
    runs: Iterable[str | Path | Run],
    data: Dataset | str | Path,
    out: str | Path | None = None,
    *,
    metric: str | None = None,
) -> Run:
    """Blend finished runs of one split: a weighted sum of their scores, see `rediffuse.models.blend`.

    The weights are chosen on the validation subset. A run that has learned from the validation interactions (`refit`)
    would look better there than it is, so for the choice it is fitted to the training interactions again, with its own
    choices; the blend then answers with the run as it is. The new run folder holds the weights of all parts, so the
    others can be deleted.

    Args:
        runs: at least two run folders, or what `rediffuse.train` returned.
        data: the dataset that they were trained on, or the path of its folder.
        out: the new run folder, which is required.
        metric: the validation metric that the weights are chosen by; None: "ndcg@10/unseen".

    Returns:
        The run; ``config["resolved"]["settings"]["weights"]`` has the weights.

    Raises:
        ConfigError: fewer than two runs are given, or one twice; the metric is unknown; the split has no validation
            subset.
        RunError: a run cannot be read, is a blend, or was trained on other data or another split; ``out`` is not empty.
        DataError: no validation user has a history.
        StorageError: ``out`` cannot be written.
    """
    folders = [run_path("runs", run) for run in ([runs] if isinstance(runs, str | Path | Run) else runs)]
    dataset = as_dataset("data", data)
    place = output("out", out, 'Name a folder for the run: out="runs/blend".')
    place.start()
    folder = place.folder
    metric = require_text("metric", metric)
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} runs were given.", "Give at least two to blend.")
    if len({path.resolve() for path in folders}) < len(folders):
        raise ConfigError("A run was given twice.", "Give each run once.")
    parts = [read_run(path) for path in folders]
    split = _common_split(parts, dataset)
    began, memory = time.monotonic(), PeakMemory()
    described = [{name: part.config[name] for name in ("model", "class", "distribution", "config")} for part in parts]
    options = BlendConfig.build(None, {"parts": described} | ({"metric": metric} if metric else {}))
    seed = parts[0].config["seed"]
    run_config = describe_run(Blend, None, options, seed, split, {})
    run_config["blended"] = [
        {"run": str(part.path), "weights": part.weights, "seed": part.config["seed"]} for part in parts
    ]
    tables = [part.config["data"]["tables"] for part in parts if part.config["data"].get("tables")]
    run_config["data"]["tables"] = tables[0] if tables else None

    view = split.training_view()
    if not len(view.valid.users):
        raise ConfigError(
            "The split has no validation subset, on which the weights are chosen.", "Train on a split with one."
        )
    refuse_selection(view.valid, "the weights of a blend")
    refitted = [part for part in parts if part.config["training"].get("refitted")]
    network = Blend(options, view.num_items, view.num_users)
    network.fill([part.model for part in parts])
    trainer = Trainer(network, view, folder, seed=seed, user_ids=dataset.user_ids)
    move(network, trainer.device)
    for part in refitted:
        own = Trainer(part.model, view, folder, seed=part.config["seed"], user_ids=dataset.user_ids)
        own.refit(view.train)
    with contextlib.ExitStack() as stack:
        open_run_folder(folder, run_config, False, stack)
        trainer.refit(view.train)  # popularity, for users without a history
        resolved = trainer.calibrate() | {"parts": [part.config["resolved"] for part in parts]}
        network.resolve(resolved)
        validation = trainer.validate()
        if refitted:
            network.fill([read_run(part.path).model if part in refitted else part.model for part in parts])
            move(network, trainer.device)
            trainer.refit(split.before_test())
        minutes = (time.monotonic() - began) / 60
        run_config |= {
            "resolved": resolved,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "training": {
                "best_epoch": 0,
                "finished": True,
                "refitted": _refitted(parts),
                "minutes": minutes,
                "precision": trainer.state.precision,
                "processes": 1,
                "parameters": sum(p.numel() for p in network.parameters()),
                "peak_memory_mib": memory.mib(),
            },
            "validation": validation,
        }
        write_files(trainer, split, folder, run_config)
    place.publish()
    return Run(place.path, run_config, validation, minutes)


def _refitted(parts: list[RunContents]) -> bool | str:
    """What of the blend learned from the validation interactions: all of it, the parts that it names, or nothing."""
    found = [part.config["training"].get("refitted", False) for part in parts]
    if not any(found):
        return False
    if all(each is True for each in found):
        return True
    names = [
        part.config["model"] if each is True else f"{each} of {part.config['model']}"
        for part, each in zip(parts, found, strict=True)
        if each
    ]
    return " and ".join(names)


def _common_split(parts: list[RunContents], dataset: Dataset) -> Split:
    """The split that all runs were trained on.

    Raises:
        RunError: a run is a blend, or they were trained on different data or splits, or not on ``dataset``.
    """
    first = parts[0]
    for part in parts:
        if isinstance(part.model, Blend):
            raise RunError(f"{part.path} is a blend.", "Give the runs that it was made of.")
        if part.config["split"]["fingerprint"] != first.config["split"]["fingerprint"]:
            raise RunError(
                f"{part.path} and {first.path} were trained on different splits.", "Blend runs of one split."
            )
        check_data(part, dataset)
    return split_of(first, dataset)
