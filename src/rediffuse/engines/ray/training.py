"""`rediffuse.train` on Ray Train: the same training in a group of workers, which Ray starts again if one dies."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from rediffuse import distributed
from rediffuse.arguments import require_flag, require_integer, require_path
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split
from rediffuse.engines.ray.cluster import cluster, everywhere, quiet
from rediffuse.engines.ray.mailbox import Mailbox, delivering, sending
from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.runs.identity import check_use, identity_path
from rediffuse.runs.run_folder import Run, read_config
from rediffuse.training import train as train_here
from rediffuse.training.train import plan

_REMEDY = "The last checkpoint is kept: start the same command again with --resume (Python: resume=True)."


def train(
    model: str | type[Model],
    data: Split | Dataset | str | Path,
    out: str | Path | None = None,
    *,
    workers: int = 2,
    gpus: bool | None = None,
    restarts: int = 3,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> Run:
    """`rediffuse.train` in a worker group of Ray Train, to the weights that ``torchrun`` gives with as many processes.

    Processes communicate by gloo on CPUs and by NCCL on GPUs. If a worker dies, Ray starts all of them again, and they
    continue from the last checkpoint, to the weights of an undisturbed training.

    Args:
        model: as for `rediffuse.train`. The module of a class must be importable on every node.
        data: as for `rediffuse.train`. A path must be one that every node finds; a dataset or a split is sent to them.
        out: the run folder, where every node finds it.
        workers: processes; each takes a CPU, and with ``gpus`` a GPU.
        gpus: whether workers get a GPU each. None: if the cluster has one for each.
        restarts: times that Ray starts the workers again.
        resume, progress, options: as for `rediffuse.train`. Callbacks are sent to the workers, and called there.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster has fewer CPUs or GPUs than workers; or as `rediffuse.train`.
        RunError: workers died more often than ``restarts``; or as `rediffuse.train`.
        RediffuseError: as `rediffuse.train`; the error of a worker arrives as it was raised.

    Warns:
        RediffuseWarning: as `rediffuse.train`.
    """
    workers, restarts = require_integer("workers", workers), require_integer("restarts", restarts, minimum=0)
    progress = require_flag("progress", progress)
    folder = Path(everywhere(require_path("out", out, 'Name a folder for the run: out="runs/mine".')))
    options["phases_from"] = {phase: everywhere(run) for phase, run in (options.get("phases_from") or {}).items()}
    check_use(folder, resume)  # workers that start again resume, whatever is in the folder
    if isinstance(data, Split):  # what can be refused is refused before Ray starts
        chosen = (options.get(name) for name in ("preset", "config", "seed", "phases_from"))
        preset, config, seed, phases_from = chosen
        plan(model_class(model), data, preset, config, seed or 0, phases_from)
    elif not isinstance(data, Dataset):
        data = everywhere(data)
    with cluster(_REMEDY):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        found = ray.cluster_resources()
        if gpus is None:
            gpus = found.get("GPU", 0) >= workers
        kind = "GPU" if gpus else "CPU"
        if found.get(kind, 0) < workers:
            have = f"{int(found.get(kind, 0))} {kind}s"
            raise ConfigError(f"{workers} workers need a {kind} each, and Ray has {have}.", "Give fewer workers.")
        mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()  # pyright: ignore
        # Ray keeps records of its own, and wants them on a disk that all nodes share.
        records = folder.with_name(f".{folder.name}.ray")
        trainer = TorchTrainer(
            _work,
            train_loop_config={"training": (model, data, folder, options), "mailbox": mailbox},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name="workers", storage_path=str(records), failure_config=FailureConfig(max_failures=restarts)
            ),
        )
        try:
            with delivering(mailbox, progress):
                trainer.fit()
        finally:
            shutil.rmtree(records, ignore_errors=True)
            # Ours is raised in place of what Ray makes of it.
            error: Any = ray.get(mailbox.first_error.remote())
            if error is not None:
                raise error from None
    config = read_config(folder)
    return Run(folder, config, config["validation"], config["training"]["minutes"])


def _work(settings: dict[str, Any]) -> None:
    """What every worker does: train, or resume what workers before it began."""
    import ray

    mailbox = settings["mailbox"]
    if ray.get(mailbox.first_error.remote()):
        return  # it would be raised again
    quiet()
    model, data, folder, options = settings["training"]
    distributed.init()
    # Asked by all before one of them writes it.
    started = distributed.any_rank(identity_path(folder).exists())
    first = distributed.rank() == 0
    try:
        with sending(mailbox) if first else contextlib.nullcontext():
            train_here(model, data, folder, resume=started, **options)
    except distributed.LostProcessError:
        raise  # Ray starts all workers again
    except RediffuseError as error:
        ray.get(mailbox.fail.remote(distributed.rank(), error))
        raise
