"""Small runs to serve, with titles, times and a knowledge graph."""

from __future__ import annotations

import pytest
from tests.two_hops import TwoHops

import rediffuse as rd
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "precision": "fp32", "blocks": 1}


@pytest.fixture(scope="session")
def split():
    return rd.split.leave_one_out(synthetic_interactions(knowledge=True))


@pytest.fixture(scope="session")
def train(split):
    """A function train(name, folder, seed) that trains a run for two epochs."""

    def made(name, folder, seed=0, **options):
        known = rd.models.model_class(name).Config.model_fields
        options = {option: value for option, value in (TINY | options).items() if option in known}
        return rd.train(name, split, folder, config=options, seed=seed).path

    return made


@pytest.fixture(scope="session")
def folders(train, split, tmp_path_factory):
    out = tmp_path_factory.mktemp("served")
    paths = [train(name, out / name) for name in ("diffurec", "sasrec", "diffkg", "itemknn")]
    paths.append(rd.train(TwoHops, split, out / "hops").path)
    rd.evaluate(paths[0], split.dataset)
    return paths
