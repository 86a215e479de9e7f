"""The encoder's shortcuts equal its plain form."""

from __future__ import annotations

import math

import pytest
import torch

from rediffuse.nn import Dropout, Encoder, dropout, sinusoidal_embedding


def encoder(causal: bool, **options) -> Encoder:
    torch.manual_seed(0)
    return Encoder(8, blocks=3, heads=2, dropout=0.1, causal=causal, **options).double().eval()


LENGTHS = torch.tensor([1, 4, 6, 3])
ROWS = torch.arange(4)


def tokens() -> torch.Tensor:
    return torch.randn(4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_last_equals_the_last_position_of_all(causal, gated):
    net, x = encoder(causal, gated=gated), tokens()
    torch.testing.assert_close(net.last(x, LENGTHS), net(x, LENGTHS)[ROWS, LENGTHS - 1])


@pytest.mark.parametrize("gated", [False, True])
def test_advance_equals_a_full_pass_with_another_last_token(gated):
    net, x = encoder(True, gated=gated), tokens()
    cache = net.prefill(x, LENGTHS)
    for seed in (2, 3):  # the cache can be used again
        last = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        changed = x.clone()
        changed[ROWS, LENGTHS - 1] = last
        expected = net(changed, LENGTHS)[ROWS, LENGTHS - 1]
        torch.testing.assert_close(net.advance(last, LENGTHS, cache), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_has_no_influence(causal):
    net, x = encoder(causal), tokens()
    noisy = torch.where((torch.arange(6) < LENGTHS[:, None])[..., None], x, 99.0)
    torch.testing.assert_close(net.last(noisy, LENGTHS), net.last(x, LENGTHS))


def test_causal_positions_do_not_see_later_ones():
    net, x = encoder(True), tokens()
    later = x.clone()
    later[:, 3, :4] += 1.0  # not to all elements, which LayerNorm would undo
    before, after = net(x, LENGTHS), net(later, LENGTHS)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_released_padding_is_attended_to_and_attends_uniformly():
    """The mask is on query rows: real positions attend to all, padded positions attend to all equally."""
    net, x = encoder(False, pads_are_keys=True), tokens()
    real = (torch.arange(6) < LENGTHS[:, None])[:, None, :, None]
    y = x
    for block in net.blocks:
        q, k, v = block._split(block.qkv(block.norm_attention(y)))
        logits = (q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5).masked_fill(~real, -1e9)
        y = y + block.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = y + block._feed(y)
    expected = net.norm(y)[ROWS, LENGTHS - 1]
    torch.testing.assert_close(net.last(x, LENGTHS), expected)


def test_ligr_by_the_formulas():
    """x + sigmoid(W x + b) * f(LayerNorm(x)), f the attention and then a SwiGLU without biases (arXiv 2502.03417)."""
    net, x = encoder(True, gated=True), tokens()
    y = x
    for block in net.blocks:
        normed = torch.layer_norm(y, (8,), block.norm_attention.weight, block.norm_attention.bias, 1e-12)
        q, k, v = (normed @ block.qkv.weight.T + block.qkv.bias).split(8, dim=-1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            logits = q[..., head] @ k[..., head].transpose(1, 2) / 2  # the root of a head's width, 4
            logits = logits + torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)
            heads.append(logits.softmax(-1) @ v[..., head])
        attention = torch.cat(heads, -1) @ block.out.weight.T + block.out.bias
        first, second = block.gates
        y = y + attention / (1 + torch.exp(-(y @ first.weight.T + first.bias)))
        normed = torch.layer_norm(y, (8,), block.norm_feed.weight, block.norm_feed.bias, 1e-12)
        inner = normed @ block.expand.weight.T
        swiglu = (inner / (1 + torch.exp(-inner)) * (normed @ block.linear.weight.T)) @ block.contract.weight.T
        y = y + swiglu / (1 + torch.exp(-(y @ second.weight.T + second.bias)))
        assert block.expand.bias is block.contract.bias is block.linear.bias is None
    torch.testing.assert_close(net(x, LENGTHS), net.norm(y))


def test_gated_blocks_drop_nothing_of_the_residual():
    net, x = encoder(True, gated=True).train(), tokens()
    with torch.no_grad():
        for block in net.blocks:
            for gate in block.gates:
                gate.weight.zero_()
                gate.bias.fill_(-100)  # closed: nothing is added
    torch.testing.assert_close(net(x, LENGTHS), net.norm(x))


@pytest.mark.parametrize("causal", [True, False])
def test_a_batch_may_be_empty(causal):
    net = encoder(causal)
    empty = torch.zeros(0, 3, 8, dtype=torch.float64)
    assert net.last(empty, torch.zeros(0, dtype=torch.int64)).shape == (0, 8)


def test_gradients_by_finite_differences():
    net = encoder(False)
    x = tokens()[:2, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net.last(x, torch.tensor([2, 3])), (x,), atol=1e-5)


def test_attention_with_dropout_equals_fused_attention_on_average():
    net, x = encoder(True), tokens()
    expected = net.blocks[0](x, None, True)[0]
    block = net.blocks[0]
    block.train()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([block(x, None, True)[0] for _ in range(1000)])
    # Dropout is unbiased through linear layers, and almost through the GELU.
    assert (drawn.mean(0) - expected).abs().max() < 0.1


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_rate_scale_and_seed(rate):
    drop, x = Dropout(rate), torch.ones(1_000_003)
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert torch.equal(first, drop(x))
    assert first.mean().item() == pytest.approx(1.0, abs=0.01)
    assert (first == 0).float().mean().item() == pytest.approx(round(rate * 256) / 256, abs=0.002)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("rate", [1e-4, 0.001, 0.00195, 0.01, 0.02, 0.04, 0.96, 0.99, 0.998, 0.999, 0.9999])
def test_rates_near_zero_and_one_are_exact(rate):
    """A multiple of 1/256 would drop nothing at 0.001, and divide by zero at 0.999."""
    torch.manual_seed(5)
    size = 4_000_000
    found = dropout(torch.ones(size), rate, True)
    dropped = int((found == 0).sum())
    deviation = math.sqrt(size * rate * (1 - rate))
    assert abs(dropped - size * rate) < 4.5 * deviation
    assert found.isfinite().all()
    assert found[found != 0].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-5)
    assert abs(found.double().mean().item() - 1) < 4.5 * deviation / (size * (1 - rate))


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_no_rate_is_rounded_by_more_than_two_per_cent_of_itself(hundredths):
    rate = hundredths / 100
    torch.manual_seed(hundredths)
    scale = dropout(torch.ones(20_000), rate, True).max().item()
    used = 1 - 1 / scale
    assert abs(used - rate) <= 0.02 * min(rate, 1 - rate) + 1e-6


def test_sinusoidal_embedding_by_hand():
    angles = [3 * 10_000 ** (-k / 5) for k in range(5)]
    expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
    assert sinusoidal_embedding(torch.tensor([3]), 10)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert sinusoidal_embedding(torch.tensor([3]), 11)[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-6)
