from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.diffusion import timestep_sampler
from rediffuse.errors import ConfigError


def fed(t, losses, **params):
    sampler = timestep_sampler("lossaware", 4, **params)
    sampler.update(torch.tensor(t), torch.tensor(losses))
    return sampler


def mixed(*mean_squares):
    """.999 of the root mean squares' shares and .001 of the uniform distribution."""
    roots = [square**0.5 for square in mean_squares]
    return [0.999 * root / sum(roots) + 0.001 / len(roots) for root in roots]


def test_probabilities_and_weights_by_hand():
    sampler = fed([0, 0, 1, 1, 2, 2, 3, 3], [1.0, 2, 3, 4, 0, 0, 1, 1], history_per_term=2)
    assert sampler.weights().tolist() == pytest.approx(mixed(2.5, 12.5, 0, 1), abs=1e-9)
    sampler.update(torch.tensor([0]), torch.tensor([5.0]))
    expected = mixed((4 + 25) / 2, 12.5, 0, 1)
    assert sampler.weights().tolist() == pytest.approx(expected, abs=1e-9)
    t, weight = sampler.sample(500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight, (1 / (4 * torch.tensor(expected)))[t])


def test_fixed_samplers():
    assert timestep_sampler("uniform", 4).weights().tolist() == [1, 1, 1, 1]
    fixstep = timestep_sampler("fixstep", 5)
    assert fixstep.weights().tolist() == [1, 1, 0.5, 0.5, 0.5]
    assert fixstep.probabilities().tolist() == pytest.approx([2 / 7, 2 / 7, 1 / 7, 1 / 7, 1 / 7])
    before = fixstep.weights()
    fixstep.update(torch.tensor([0]), torch.tensor([100.0]))
    assert fixstep.weights().tolist() == before.tolist()


@pytest.mark.parametrize("name", ["uniform", "fixstep", "lossaware"])
def test_samples_follow_the_probabilities_and_weights_undo_them(name):
    sampler = timestep_sampler(name, 4)
    if name == "lossaware":
        sampler.update(torch.arange(4).repeat(10), torch.tensor([1.0, 4.0, 2.0, 0.5]).repeat(10))
    chances = sampler.probabilities()
    assert chances.sum().item() == pytest.approx(1)
    t, weight = sampler.sample(40_000, torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64
    assert t.shape == weight.shape == (40_000,)
    assert weight.dtype == torch.float32
    frequencies = torch.bincount(t, minlength=4) / len(t)
    torch.testing.assert_close(frequencies.double(), chances, rtol=0, atol=0.012)
    # Any function of t: its weighted mean is the mean over uniform timesteps.
    value = torch.tensor([3.0, 1.0, 2.0, 6.0])
    assert (weight * value[t]).mean().item() == pytest.approx(3.0, abs=0.1)


def test_same_generator_same_sample():
    sampler = timestep_sampler("uniform", 32)
    draws = [sampler.sample(8, torch.Generator().manual_seed(seed))[0].tolist() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_uniform_until_every_timestep_has_its_losses():
    sampler = fed([0, 1, 2, 0, 1, 2, 3], [9.0] * 7, history_per_term=2)
    assert sampler.weights().tolist() == [1, 1, 1, 1]
    _, weight = sampler.sample(5)
    assert weight.tolist() == [1, 1, 1, 1, 1]
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    assert sampler.weights()[3] < sampler.weights()[0]


def test_all_zero_losses_leave_a_uniform_sampler():
    sampler = fed([0, 1, 2, 3], [0.0] * 4, history_per_term=1)
    assert sampler.probabilities().tolist() == pytest.approx([0.25] * 4)


class LoopSampler:
    """The update as a loop over samples: the definition that the vectorised one must equal."""

    def __init__(self, steps, size):
        self.queues = [deque(maxlen=size) for _ in range(steps)]

    def update(self, t, losses):
        for at, loss in zip(t, losses, strict=True):
            self.queues[at].append(loss)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_vectorised_update_equals_the_loop(data):
    steps = data.draw(st.integers(1, 6))
    size = data.draw(st.integers(1, 4))
    loop, sampler = LoopSampler(steps, size), timestep_sampler("lossaware", steps, history_per_term=size)
    number = 0
    for _ in range(data.draw(st.integers(1, 4))):
        t = data.draw(st.lists(st.integers(0, steps - 1), max_size=20))
        losses = [float(number + i + 1) for i in range(len(t))]  # all different: order and place can be seen
        number += len(t)
        loop.update(t, losses)
        sampler.update(torch.tensor(t, dtype=torch.int64), torch.tensor(losses))
        for at, queue in enumerate(loop.queues):
            assert sampler.counts[at] == len(queue)
            assert sampler.history[at].tolist() == list(queue) + [0.0] * (size - len(queue))


def test_update_takes_per_token_timesteps_and_no_gradient():
    sampler = timestep_sampler("lossaware", 4, history_per_term=2)
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    sampler.update(torch.tensor([[0, 1], [1, 1]]), losses)
    assert sampler.history[:2].tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert not sampler.history.requires_grad
    with pytest.raises(ConfigError, match="one loss per timestep"):
        sampler.update(torch.tensor([0, 1]), torch.tensor([1.0]))


def test_losses_that_are_nan_are_left_out():
    sampler = fed([0, 1, 0, 3], [1.0, float("nan"), 2.0, float("nan")], history_per_term=2)
    assert sampler.history.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert sampler.counts.tolist() == [2, 0, 0, 0]


def test_a_model_saves_its_sampler(tmp_path):
    def model():
        return torch.nn.ModuleDict({"timesteps": timestep_sampler("loss-aware", 4, history_per_term=2)})

    trained, fresh = model(), model()
    trained["timesteps"].update(torch.arange(4).repeat(2), torch.arange(8.0))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    fresh.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert set(trained.state_dict()) == {"timesteps.history", "timesteps.counts"}
    assert fresh["timesteps"].weights().tolist() == trained["timesteps"].weights().tolist() != [1, 1, 1, 1]
    assert not list(fresh.parameters())


def test_two_processes_end_with_the_history_of_both(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # the new processes import the function by name
    import two_ranks

    torch.multiprocessing.spawn(two_ranks.run, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    alone = timestep_sampler("lossaware", two_ranks.STEPS, history_per_term=two_ranks.HISTORY)
    for i, (first, second) in enumerate(zip(two_ranks.batches(0), two_ranks.batches(1), strict=True)):
        alone.update(torch.cat((first[0], second[0])), torch.cat((first[1], second[1])))
        for rank in (0, 1):
            assert torch.equal(states[rank][i]["history"], alone.history)
            assert torch.equal(states[rank][i]["counts"], alone.counts)
    assert alone.weights().unique().numel() > 1  # it got past its uniform beginning


def test_names_and_errors():
    for name in ("lossaware", "loss-aware", "loss_aware"):
        assert timestep_sampler(name, 8, history_per_term=3, uniform_prob=0.5).history.shape == (8, 3)
    assert type(timestep_sampler("fix-step", 8)) is type(timestep_sampler("fixstep", 8))
    with pytest.raises(ConfigError, match="Did you mean 'lossaware'"):
        timestep_sampler("lossawar", 8)
    with pytest.raises(ConfigError, match="Did you mean 'history_per_term'"):
        timestep_sampler("lossaware", 8, history=3)
    with pytest.raises(ConfigError, match="no parameters"):
        timestep_sampler("uniform", 8, uniform_prob=0.1)
    with pytest.raises(ConfigError, match="history_per_term is 0"):
        timestep_sampler("lossaware", 8, history_per_term=0)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="uniform_prob is"):
            timestep_sampler("lossaware", 8, uniform_prob=share)
    with pytest.raises(ConfigError, match="steps is 0"):
        timestep_sampler("uniform", 0)
    with pytest.raises(ConfigError, match="Cannot draw 0"):
        timestep_sampler("uniform", 8).sample(0)
