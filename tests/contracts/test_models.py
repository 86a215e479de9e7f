"""What every built-in model must keep: new models are picked up by name and cannot skip this."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

import rediffuse as rd
from rediffuse import models
from rediffuse.runs.run_folder import Run
from rediffuse.testing import CONTRACTS, NotApplicable, TrainedModel, train_small

# Small sizes of built-in models, beside those of `rediffuse.testing`; options that a model does not have are left out.
TINY = {
    **{"embedding_size": 16, "batch_size": 64, "epochs": 3, "blocks": 1, "patience": 2},
    **{"n": 2, "generator_epochs": 2, "pretrain_epochs": 2, "classifier": {"epochs": 2}},
}

OWN = {"colddiff": {"backbone_options": {"epochs": 2, "embedding_size": 16}}}

# Beside the models that are trained by their name: networks with a prior, and a blend.
OTHERS = {
    "bprmf-head": {"prior": "head"},
    "gru4rec-head": {"prior": "head"},
    "gru4rec-residual": {"prior": "residual"},
    "diffurec-residual": {"prior": "residual"},
    "diffrec-noised": {"noising_steps": 3},
    "d3rec-guided": {"guidance_scale": 0.5, "temperature": 3.0},
    "ldiffrec-noised": {"noising_steps": 3, "sampling_noise": True},
    "diffnet-layers": {"layer": "relu"},
    "colddiff-bprmf": {"backbone": "bprmf", "guidance_scale": 1.0, "solver": "ancestral"},
    "colddiff-lightgcn": {"backbone": "lightgcn", "diffusion": False},
    "diffuasr-own": {"item_vectors": "own"},
}
BLENDED = ("gru4rec", "transition")

# One of the users has friends and no interactions.
pytestmark = pytest.mark.filterwarnings("ignore:1 of 61 histories are empty")


@dataclass
class TrainedBlend(TrainedModel):
    """A blend: it is trained again by training its parts again."""

    parts: list[TrainedModel] = field(default_factory=list)

    def train_again(self, name: str, seed: int) -> Run:
        runs = [part.train_again(f"{name}-part", seed) for part in self.parts]
        return rd.blend(runs, self.split.dataset, self.folder / name)


def small(name: str, folder) -> TrainedModel:
    """A small run of a model, or of a model with an option (`OTHERS`)."""
    kind = name.partition("-")[0]
    known = models.model_class(kind).Config.model_fields
    options = {name: value for name, value in TINY.items() if name in known}
    options |= OWN.get(kind, {}) | OTHERS.get(name, {})
    return train_small(kind, folder, options)


@pytest.fixture(scope="module", params=[*models.names(installed=False), *OTHERS, "blend"])
def trained(request, tmp_path_factory) -> TrainedModel:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "blend":
        return small(request.param, folder)
    parts = [small(name, folder / name) for name in BLENDED]
    run = rd.blend([part.run for part in parts], parts[0].split.dataset, folder / "run")
    return TrainedBlend(models.Blend, parts[0].split, run, folder, parts)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(trained, contract):
    try:
        contract(trained)
    except NotApplicable as reason:
        pytest.skip(str(reason))
