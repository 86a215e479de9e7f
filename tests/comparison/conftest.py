"""Small evaluated runs of several models and seeds, for the tests of comparisons."""

from __future__ import annotations

import pytest

import rediffuse as rd
from rediffuse.testing import synthetic_interactions

TINY = {"epochs": 2, "embedding_size": 16, "blocks": 1, "batch_size": 64}


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """name -> run folder, all on one split."""
    root, data = tmp_path_factory.mktemp("evaluated"), synthetic_interactions()
    split = rd.split.leave_one_out(data)
    wanted = {
        "popularity": ("popularity", {}, 0),
        "itemknn": ("itemknn", {}, 0),
        "diffurec-0": ("diffurec", TINY, 0),
        "diffurec-1": ("diffurec", TINY, 1),
        "ablation-0": ("diffurec", TINY | {"diffusion": False}, 0),
        "ablation-1": ("diffurec", TINY | {"diffusion": False}, 1),
    }
    for name, (model, options, seed) in wanted.items():
        rd.train(model, split, root / name, config=options, seed=seed)
        rd.evaluate(root / name, data, seeds=[0, 1])
    return {name: root / name for name in wanted}
