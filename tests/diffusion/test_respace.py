from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rediffuse.diffusion import from_betas, noise_schedule, respace, space_log_snr, space_timesteps
from rediffuse.errors import ConfigError


def test_spacing_by_hand():
    """Strides 99 / 9, 99 / 14 and 99 / 19 in three sections; 31 / 4 for five of 32."""
    kept = space_timesteps(300, "10,15,20")
    assert len(kept) == 45
    assert kept[:12] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 107]
    assert kept[-1] == 299
    assert space_timesteps(32, "ddim8") == [0, 4, 8, 12, 16, 20, 24, 28]
    assert space_timesteps(32, "5") == [0, 8, 16, 23, 31]
    assert space_timesteps(1000, "ddim5") == [0, 200, 400, 600, 800]


def test_forms_of_counts():
    assert space_timesteps(300, [10, 15, 20]) == space_timesteps(300, " 10, 15,20 ")
    assert space_timesteps(32, 5) == space_timesteps(32, "5")
    assert space_timesteps(32, 1) == [0]
    assert space_timesteps(10, "2,2,2") == [0, 3, 4, 6, 7, 9]  # the first section has the one left over
    # Ties are Python's: .5 goes to the even neighbour, so 1.5 -> 2, 4.5 -> 4, 7.5 -> 8.
    assert space_timesteps(10, 7) == [0, 2, 3, 4, 6, 8, 9]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ("ddim21", "no whole stride gives exactly 21 of 32"),
        ("ddim33", "no whole stride gives exactly 33 of 32"),
        ("33", "has 32 of 32 timesteps, fewer than the 33"),
        ("8,9,17", "section 2 of 3 has 10 of 32 timesteps, fewer than the 17"),
        ("ddim", "cannot use ''"),
        ("ddim0", "cannot use '0'"),
        ("4,,4", "cannot use ''"),
        ("four", "cannot use 'four'"),
        (0, "cannot use 0"),
        ([4, -1], "cannot use -1"),
        (2.5, "cannot use 2.5"),
        ([True], "cannot use True"),
        (None, "cannot use None"),
        ([], "no section"),
    ],
)
def test_errors(counts, says):
    with pytest.raises(ConfigError) as error:
        space_timesteps(32, counts)
    assert says in error.value.problem


def test_ddim_error_names_what_exists():
    with pytest.raises(ConfigError, match="ddim11, ddim16"):
        space_timesteps(32, "ddim21")


@given(st.data())
def test_spacing_properties(data):
    steps = data.draw(st.integers(1, 120))
    sections = data.draw(st.integers(1, min(steps, 5)))
    sizes = [steps // sections + (i < steps % sections) for i in range(sections)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    kept = space_timesteps(steps, counts)
    assert kept == sorted(set(kept))
    assert len(kept) == sum(counts)
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        inside = [t for t in kept if start <= t < start + size]
        assert len(inside) == count
        assert inside[0] == start
        if count > 1:
            assert inside[-1] == start + size - 1
            gaps = {b - a for a, b in pairwise(inside)}
            assert max(gaps) - min(gaps) <= 2
        start += size


@given(st.integers(1, 100), st.integers(1, 100))
def test_ddim_stride_is_the_smallest(steps, stride):
    count = len(range(0, steps, stride))
    kept = space_timesteps(steps, f"ddim{count}")
    assert len(kept) == count
    assert len({b - a for a, b in pairwise(kept)}) <= 1
    if count > 1:
        assert kept[1] <= stride
        assert len(range(0, steps, kept[1] - 1)) != count if kept[1] > 1 else True


def test_respace_with_all_steps_is_the_identity():
    schedule = noise_schedule("cosine", 17)
    short, numbers = respace(schedule, range(17))
    assert numbers.tolist() == list(range(17))
    assert short.betas.tolist() == schedule.betas.tolist()
    assert short.alphas_cumprod.tolist() == schedule.alphas_cumprod.tolist()


def test_respacing_twice_is_respacing_once():
    schedule = noise_schedule("trunc_lin", 32)
    once, _ = respace(schedule, [0, 8, 24, 31])
    twice, _ = respace(respace(schedule, [0, 4, 8, 16, 24, 31])[0], [0, 2, 4, 5])
    torch.testing.assert_close(once.betas, twice.betas, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("timesteps", "says"),
    [
        ([], "do not lie"),
        ([0, 32], "do not lie"),
        ([-1, 3], "do not lie"),
        ([3, 2], "not ascending"),
        ([2, 2], "not ascending"),
        (list(range(30, 0, -1)), "not ascending"),
    ],
)
def test_respace_errors(timesteps, says):
    with pytest.raises(ConfigError, match=says):
        respace(noise_schedule("trunc_lin", 32), timesteps)


@pytest.mark.parametrize(("name", "steps"), [("trunc_lin", 32), ("cosine", 50), ("linear", 1000), ("sqrt", 7)])
def test_spacing_even_in_log_snr(name, steps):
    schedule = noise_schedule(name, steps)
    log_snr = schedule.snr.log().tolist()
    for count in range(2, min(steps, 40) + 1):
        kept = space_log_snr(schedule, count)
        assert len(kept) == count
        assert (kept[0], kept[-1]) == (0, steps - 1)
        assert all(a < b for a, b in pairwise(kept))
        nearest = [
            min(range(steps), key=lambda t: abs(log_snr[t] - aim))
            for aim in np.linspace(log_snr[0], log_snr[-1], count)
        ]
        if len(set(nearest)) == count:
            assert kept == nearest
    assert space_log_snr(schedule, 1) == [0]
    assert space_log_snr(schedule, steps) == list(range(steps))


def test_spacing_in_log_snr_where_no_signal_is_left():
    assert space_log_snr(from_betas([0.1, 0.2, 0.3, 1.0]), 2) == [0, 3]


@pytest.mark.parametrize("count", [0, -1, 33, 2.5, True])
def test_spacing_in_log_snr_refuses_other_counts(count):
    with pytest.raises(ConfigError, match="space_log_snr: cannot keep"):
        space_log_snr(noise_schedule("trunc_lin", 32), count)
