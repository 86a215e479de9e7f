"""Trains registered models in all processes of a launch: a folder, and the names of the models."""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

import rediffuse as rd
from rediffuse import distributed, models
from rediffuse.evaluation import rank
from rediffuse.files import atomic_write_text
from rediffuse.losses import Draws
from rediffuse.models.base import Model
from rediffuse.testing import synthetic_interactions

# Small, and without random draws if a model has such options: then the losses must be those of one process.
OPTIONS = {
    **{"embedding_size": 16, "batch_size": 59, "epochs": 3, "blocks": 1, "precision": "fp32", "patience": 9},
    **{"n": 2, "generator_epochs": 2, "pretrain_epochs": 2, "generator_batch": 32},
    **{"dropout": 0.0, "embedding_dropout": 0.0, "denoiser_batch": 59},
    "refit": False,  # the recorded validation metrics are then those of the weights in the run
}
ABLATION = {"diffusion": False}
DRAWN = {"timestep_sampler": "lossaware", "diffusion_steps": 3}
ROWS = {"loss": "sampled_softmax", "negatives": 32, "item_optimizer": "rowwise_adagrad"}  # a sparse gradient
PHASE = {"epochs": 2, "dropout": 0.0}
OWN = {
    **{"diffurec": ABLATION, "diffrec": ABLATION, "tdiffrec": ABLATION, "heatrec": ABLATION | {"prior": "none"}},
    **{"flowcf": ABLATION, "giffcf": ABLATION, "preferdiff": ABLATION | {"preference": False}},
    "d3rec": ABLATION | {"condition_dropout": 0.0},
    **{"pdrec": {"diffusion": PHASE | ABLATION, "backbone_options": {"dropout": 0.0}}},
    "colddiff": ABLATION | {"dropout": 0.0, "condition_dropout": 0.0, "guidance_scale": 0.0, "backbone_options": PHASE},
    **{"diffuasr": {"classifier": PHASE, "backbone_options": {"dropout": 0.0}}},
}
FITS = [(name, OWN.get(name, {})) for name in models.names(installed=False)]
FITS += [(name, DRAWN) for name in ("diffurec", "diffrec", "ldiffrec")] + [("sasrec", ROWS)]


def main(out: Path, names: list[str]) -> None:
    data = synthetic_interactions(friends=3, knowledge=True, categories=True)
    plain, described = (rd.split.leave_one_out(each) for each in (data, data.with_features("genres")))
    trained: list[Model] = []
    module = importlib.import_module("rediffuse.training.train")  # the name in the package is the function
    make_trainer = module.make_trainer
    module.make_trainer = lambda *args, **others: keep(make_trainer(*args, **others), trained)
    Draws.draw = lambda self, count: torch.arange(count) % len(self.sums)
    rank._BLOCK_SCORES = 0  # small blocks, so that each of two processes ranks several
    ranks, ranked = rank.true_ranks, 0

    def counted(*args: Any) -> Any:
        nonlocal ranked
        ranked += 1
        return ranks(*args)

    rank.true_ranks = counted
    for name, changed in FITS:
        if name not in names:
            continue
        folder = out / folder_name(name, changed)
        split = described if models.model_class(name).needs_content else plain
        rd.train(name, split, folder, config=known(name, OPTIONS) | changed, seed=3)
        sums = {key: zlib.crc32(tensor.numpy().tobytes()) for key, tensor in trained[-1].state_dict().items()}
        atomic_write_text(folder / f"rank{distributed.rank()}.json", json.dumps({"ranked": ranked, "state": sums}))
        ranked = 0


def known(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a model has."""
    return {name: value for name, value in options.items() if name in models.model_class(model).Config.model_fields}


def folder_name(model: str, changed: dict[str, Any]) -> str:
    return model + ("-drawn" if changed is DRAWN else "-rows" if changed is ROWS else "")


def keep(trainer: Any, trained: list[Model]) -> Any:
    trained.append(trainer.model)
    return trainer


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
