"""How much a rank's slice of a batch counts, and what updates the timestep sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import training_data

from rediffuse.data.histories import Histories
from rediffuse.models import model_class

LOSS_AWARE = {"timestep_sampler": "lossaware", "diffusion_steps": 4}
OPTIONS = {
    "diffurec": LOSS_AWARE | {"embedding_size": 8, "blocks": 1},
    "diffrec": LOSS_AWARE,
    "ldiffrec": LOSS_AWARE | {"clusters": 1},
    "pdrec": {"backbone": "diffurec", "backbone_options": LOSS_AWARE | {"embedding_size": 8, "blocks": 1}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_row_with_rank_weight_zero_does_not_update_the_timestep_sampler(name):
    torch.manual_seed(0)
    kind, data = model_class(name), training_data(Histories.from_lists([[1, 2, 3, 4], [5, 6, 7]]), 9)
    model = kind(kind.Config.build(None, OPTIONS[name]), 9, 2)
    model.fit(data)
    model.begin_phase(model.phases[-1], data)
    batches = model.batches(data, np.random.default_rng(0))
    sampler = getattr(model, "backbone", model).timesteps
    left_out = model.loss(batches.get(0, rank=99, ranks=100))
    assert left_out.item() == 0
    assert sampler.counts.sum() == 0
    assert model.loss(batches.get(0)).item() > 0
    assert sampler.counts.sum() > 0
