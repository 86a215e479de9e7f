"""What the tests damage: small finished runs, and a dataset with all kinds of files."""

from __future__ import annotations

import pytest

import rediffuse as rd
from rediffuse.recommender.index_building import build_index
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "batch_size": 64, "blocks": 1, "learning_rate": 0.02, "precision": "fp32"}


@pytest.fixture(scope="session")
def data():
    return synthetic_interactions(friends=3, knowledge=True)


@pytest.fixture(scope="session")
def split(data):
    return rd.split.leave_one_out(data)


@pytest.fixture(scope="session")
def train(split):
    """train(folder, epochs, resume): the same training in every test."""

    def train_in(folder, epochs=2, resume=False):
        return rd.train("sasrec", split, folder, config=TINY | {"epochs": epochs}, seed=3, resume=resume)

    return train_in


@pytest.fixture(scope="session")
def run(train, data, tmp_path_factory):
    """A finished run, evaluated and with an index. Tests do not change it."""
    folder = train(tmp_path_factory.mktemp("runs") / "run").path
    rd.evaluate(folder, data)
    build_index(folder, "ivf", k=10)
    return folder


@pytest.fixture(scope="session")
def longer(run, train, tmp_path_factory):
    """The same training with one more epoch."""
    folder = train(tmp_path_factory.mktemp("runs") / "longer", epochs=3).path
    assert (folder / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()
    return folder
