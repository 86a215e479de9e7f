"""What every built-in model must keep: new models are picked up by name and cannot skip this."""

from __future__ import annotations

import pytest

from rediffuse import models
from rediffuse.testing import CONTRACTS, NotApplicable, TrainedModel, train_small

# Small sizes of built-in models, beside those of `rediffuse.testing`; options that a model does not have are left out.
TINY = {
    **{"embedding_size": 16, "batch_size": 64, "epochs": 3, "blocks": 1, "patience": 2},
    **{"n": 2, "generator_epochs": 2, "pretrain_epochs": 2, "classifier": {"epochs": 2}},
}

# One of the users has friends and no interactions.
pytestmark = pytest.mark.filterwarnings("ignore:1 of 61 histories are empty")


@pytest.fixture(scope="module", params=models.names(installed=False))
def trained(request, tmp_path_factory) -> TrainedModel:
    known = models.model_class(request.param).Config.model_fields
    options = {name: value for name, value in TINY.items() if name in known}
    return train_small(request.param, tmp_path_factory.mktemp(request.param), options)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(trained, contract):
    try:
        contract(trained)
    except NotApplicable as reason:
        pytest.skip(str(reason))
