"""DiffuRec in both forms, its ablation (no diffusion) and the sequence baselines: no leaks, and they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.data.histories import Histories
from rediffuse.diffusion import space_log_snr, space_timesteps
from rediffuse.models.baselines.bert4rec import BERT4Rec
from rediffuse.models.baselines.gru4rec import GRU4Rec
from rediffuse.models.baselines.sasrec import SASRec
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.sampling import Sampling

ITEMS = 20
SMALL = {"embedding_size": 16, "blocks": 2, "heads": 2, "max_length": 8, "batch_size": 64, "precision": "fp32"}
KINDS = {
    "causal": (DiffuRec, {"form": "causal"}),
    "prefix": (DiffuRec, {"form": "prefix"}),
    "ablation": (DiffuRec, {"diffusion": False}),
    "rows-noised": (DiffuRec, {"normalize": False, "noise_schedule": "trunc_lin"}),
    "guided": (DiffuRec, {"history_dropout": 0.2, "guidance": 1.0, "self_conditioning": True}),
    "ligr": (DiffuRec, {"block": "ligr"}),
    "lossaware": (DiffuRec, {"timestep_sampler": "lossaware", "diffusion_steps": 4}),
    "released": (DiffuRec, {"form": "prefix", "fidelity": "released"}),
    "uniform": (DiffuRec, {"loss": "uniform_softmax", "negatives": 16, "item_optimizer": "rowwise_adagrad"}),
    "sampled": (DiffuRec, {"loss": "sampled_softmax", "negatives": 64, "repeat_bias": False}),
    "in-batch": (DiffuRec, {"loss": "in_batch"}),
    "sce": (DiffuRec, {"loss": "sce", "negatives": 8, "timestep_sampler": "lossaware", "diffusion_steps": 4}),
    "rowwise": (DiffuRec, {"loss": "sce", "negatives": 8, "item_optimizer": "rowwise_adagrad"}),
    "sasrec": (SASRec, {}),
    "sasrec-rowwise": (SASRec, {"loss": "sampled_softmax", "negatives": 64, "item_optimizer": "rowwise_adagrad"}),
    "sasrec-ligr": (SASRec, {"block": "ligr", "loss": "uniform_softmax", "negatives": 16, "temperature": None}),
    "sasrec-prefix": (SASRec, {"form": "prefix"}),
    "sasrec-bce": (SASRec, {"loss": "bce", "negatives": 4}),
    "sasrec-gbce": (SASRec, {"loss": "gbce", "negatives": 8}),
    "gru4rec": (GRU4Rec, {}),
    "bert4rec": (BERT4Rec, {}),
}


def build(kind: str, seed: int = 0, **options):
    model, own = KINDS[kind]
    torch.manual_seed(seed)
    small = {name: value for name, value in SMALL.items() if name in model.Config.model_fields}
    return model(model.Config.build(None, small | own | options), ITEMS)


def ring(users: int = 120, length: int = 7) -> Histories:
    """Histories that follow a ring of items."""
    starts = np.random.default_rng(0).integers(ITEMS, size=users)
    return Histories.from_lists([[(int(s) + step) % ITEMS for step in range(length)] for s in starts])


def train(model, rows: Histories, epochs: int, learning_rate: float = 0.01) -> None:
    data = training_data(rows, ITEMS)
    model.fit(data)
    steps(model, data, epochs, learning_rate)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "bert4rec" else ()) for kind in KINDS]
)
def test_it_learns_a_ring(kind):
    model = build(kind, dropout=0.1)
    train(model, ring(), epochs=130 if kind == "bert4rec" else 12)  # few targets, from both sides
    rows = Histories.from_lists([[(s + step) % ITEMS for step in range(1 + s % 6)] for s in range(ITEMS)])
    expected = (torch.arange(ITEMS) + torch.arange(ITEMS) % 6 + 1) % ITEMS
    assert (model.score(rows).argmax(1) == expected).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["causal", "ablation", "sasrec", "gru4rec"])
def test_a_position_does_not_see_the_items_after_its_target(kind):
    model = build(kind, lambda_uncertainty=0.5) if kind == "causal" else build(kind)
    model.eval()  # no dropout; the noise is drawn alike in both passes
    rows, positions = torch.zeros(6, dtype=torch.long), torch.arange(6)

    def encoded(items: list[int]) -> torch.Tensor:
        torch.manual_seed(5)
        row = torch.tensor(items)
        batch = SequenceBatch(row[None, :6], torch.tensor([6]), rows, positions, row[1:], positions + 1)
        return model.encode(batch).vectors

    before, after = encoded([1, 2, 3, 4, 5, 6, 7]), encoded([1, 2, 3, 4, 9, 6, 7])
    torch.testing.assert_close(before[:3], after[:3])  # targets 2, 3, 4 come before the changed item
    assert not torch.allclose(before[4], after[4])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_row_do_not_depend_on_its_batch(kind):
    many_steps = KINDS[kind][0] is DiffuRec and kind != "ablation"
    model = build(kind, sampling_steps=4) if many_steps else build(kind)
    model.eval()
    rows = Histories.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [3, 3, 2]])
    batch = model.score(rows, seed=9)
    for row in range(4):
        alone = model.score(rows.take(np.array([row])), seed=9)
        torch.testing.assert_close(alone[0], batch[row], rtol=1e-4, atol=1e-5)


def test_the_seed_matters_to_diffusion_only():
    rows = Histories.from_lists([[1, 2, 3]])
    for kind, stochastic in (("causal", True), ("prefix", True), ("ablation", False), ("sasrec", False)):
        options = {"lambda_uncertainty": 0.5} if stochastic else {}
        model = build(kind, **options).eval()
        assert model.stochastic is stochastic
        assert torch.equal(model.score(rows, seed=1), model.score(rows, seed=1))
        assert torch.equal(model.score(rows, seed=1), model.score(rows, seed=2)) is not stochastic


@pytest.mark.parametrize("fidelity", ["corrected", "released"])
def test_as_released_padding_is_attended_to_and_is_a_class(fidelity):
    model = build("prefix", fidelity=fidelity).eval()
    released = fidelity == "released"
    assert len(model.classes()) == ITEMS + released
    rows = Histories.from_lists([[1, 2, 3]])
    before = model.score(rows)
    with torch.no_grad():
        model.item_embedding.weight[ITEMS] += torch.randn(16)
    assert torch.equal(model.score(rows), before) is not released


def test_the_loss_aware_sampler_is_updated_and_saved():
    model = build("lossaware")
    train(model, ring(), epochs=3)
    weights = model.timesteps.probabilities()
    assert (weights - weights.mean()).abs().max() > 1e-4
    saved = model.state_dict()
    assert any("history" in name and bool(tensor.any()) for name, tensor in saved.items())


@pytest.mark.parametrize(("repeats", "sign"), [(False, -1), (True, 1)])
def test_the_repeat_bias_learns_whether_users_repeat(repeats, sign):
    rng = np.random.default_rng(0)
    rows = [
        [int(rng.integers(3)) + 4 * (user % 5) for _ in range(8)] if repeats else rng.permutation(ITEMS)[:8].tolist()
        for user in range(100)
    ]
    model = build("sasrec")
    train(model, Histories.from_lists(rows), epochs=6)
    assert model.repeat.item() * sign > 0.01


def test_the_repeat_bias_is_added_once_per_item():
    model = build("ablation").eval()
    rows = Histories.from_lists([[3, 5, 3]])
    plain = model.score(rows)
    with torch.no_grad():
        model.repeat.fill_(0.2)
    change = model.score(rows) - plain
    assert change[0, 3].item() == pytest.approx(2.0, abs=1e-5)
    assert change[0, 5].item() == pytest.approx(2.0, abs=1e-5)
    assert change.abs().sum().item() == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_history_scores_are_popularity(kind):
    model = build(kind)
    model.fallback.copy_(torch.arange(ITEMS))
    scores = model.score(Histories.from_lists([[], [1, 2]]))
    assert torch.equal(scores[0], torch.arange(ITEMS, dtype=torch.float32))
    assert not torch.equal(scores[1], scores[0])


def test_calibration_chooses_the_fewest_steps_within_the_tolerance():
    model = build("causal")
    metric = {1: 0.90, 2: 0.9951, 4: 0.996, 8: 1.0, 16: 0.99, 32: 1.0}
    resolved = model.calibrate(lambda: metric[model.sampling_steps])
    assert resolved["sampling_steps"] == 2
    assert resolved["metric_by_steps"] == {str(steps): value for steps, value in metric.items()}
    model.resolve(resolved)
    assert model.sampling_steps == 2
    assert build("ablation").calibrate(lambda: 1.0) == {}


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpmpp_2m"])
def test_fewer_steps_visit_the_timesteps_of_the_spacing(spacing, name):
    model = build("causal", spacing=spacing, solver=name, sampling_steps=5).eval()
    visited = []
    model.score(ring(3), sampling=Sampling(on_step=lambda t, *_: visited.append(t)))
    expected = {"even": space_timesteps(32, "5"), "log_snr": space_log_snr(model.schedule, 5)}
    assert visited[::-1] == expected[spacing]
    assert expected["even"] != expected["log_snr"]
