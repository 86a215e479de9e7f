"""The U-Net of DiffuASR: size and shapes of the released network, and the sizes it refuses."""

from __future__ import annotations

import pytest
import torch

from rediffuse.errors import ConfigError
from rediffuse.nn.time_embedding import ddpm_embedding
from rediffuse.nn.unet import Attention, Down, SequentialUNet

RELEASED = {"channels": 8, "multipliers": (1, 2, 2, 2), "condition_size": 64}


def parameters_by_hand(length: int) -> int:
    """Of the released network: channels 8, 16, 16, 16 on sides 8, 4, 2, 1, two blocks per level, condition of 64."""

    def linear(i: int, o: int) -> int:
        return i * o + o

    def conv(i: int, o: int, kernel: int = 3) -> int:
        return i * o * kernel**2 + o

    def norm(channels: int) -> int:
        return 2 * channels

    def block(i: int, o: int) -> int:
        shortcut = conv(i, o, 1) if i != o else 0
        return norm(i) + conv(i, o) + linear(32, o) + norm(o) + conv(o, o) + shortcut

    embeddings = linear(8, 32) + linear(32, 32) + linear(64, 32) + linear(32, 32)  # of time, of the condition
    down = conv(length, 8) + 2 * block(8, 8) + conv(8, 8)
    down += block(8, 16) + block(16, 16) + conv(16, 16)
    down += 2 * block(16, 16) + conv(16, 16)
    down += 2 * block(16, 16)
    middle = 2 * block(16, 16) + norm(16) + 4 * conv(16, 16, 1)
    # On the way up, the output of a layer on the way down is concatenated to the input of each block.
    up = 3 * block(16 + 16, 16) + conv(16, 16)
    up += 3 * block(16 + 16, 16) + conv(16, 16)
    up += 2 * block(16 + 16, 16) + block(16 + 8, 16) + conv(16, 16)
    up += block(16 + 8, 8) + 2 * block(8 + 8, 8)
    return embeddings + down + middle + up + norm(8) + conv(8, length)


@pytest.mark.parametrize(("length", "count"), [(10, 141_818), (5, 141_093)])
def test_the_released_network_has_the_released_number_of_parameters(length, count):
    net = SequentialUNet(length, 64, **RELEASED)
    assert sum(p.numel() for p in net.parameters()) == count == parameters_by_hand(length)


def test_shapes_on_the_way():
    net, seen = SequentialUNet(10, 64, **RELEASED), []
    for layer in (net.enter, *net.down, *net.middle, *net.up, net.leave):
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(tuple(output.shape[1:])))
    found = net(torch.randn(2, 10, 64), torch.tensor([3, 900]), torch.randn(2, 64))
    assert found.shape == (2, 10, 64)
    assert seen[0] == (8, 8, 8)
    downs = [shape for layer, shape in zip(net.down, seen[1:], strict=False) if isinstance(layer, Down)]
    assert downs == [(8, 4, 4), (16, 2, 2), (16, 1, 1)]
    middle = seen[1 + len(net.down) : 4 + len(net.down)]
    assert middle == [(16, 1, 1)] * 3
    assert seen[-1] == (10, 8, 8)


def test_the_embedding_of_time():
    frequencies = 10_000.0 ** -(torch.arange(4) / 3)  # of DDPM's released code: the last one is 1 / 10000
    expected = torch.cat((torch.sin(5 * frequencies), torch.cos(5 * frequencies))).tolist()
    assert ddpm_embedding(torch.tensor(5), 8).tolist() == pytest.approx(expected, abs=1e-5)
    assert ddpm_embedding(torch.tensor([1, 2]), 7).shape == (2, 7)


def test_a_row_depends_on_itself_its_time_and_its_condition():
    torch.manual_seed(0)
    net = SequentialUNet(3, 16, 8, (1, 2), condition_size=4).eval()
    x, t, c = torch.randn(4, 3, 16), torch.tensor([1, 2, 3, 4]), torch.randn(4, 4)
    whole = net(x, t, c)
    torch.testing.assert_close(net(x[2:3], t[2:3], c[2:3]), whole[2:3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, t + 100, c), whole, atol=1e-4)
    assert not torch.allclose(net(x, t, c + 1), whole, atol=1e-4)


def test_attention_is_scaled_dot_product_attention_with_one_head():
    torch.manual_seed(0)
    layer, x = Attention(8), torch.randn(2, 8, 3, 3)
    h = layer.norm(x).flatten(2)
    q, k, v = (
        torch.einsum("oc,bcp->bop", f.weight[:, :, 0, 0], h) + f.bias[:, None] for f in (layer.q, layer.k, layer.v)
    )
    weight = torch.softmax(torch.einsum("bcp,bcr->bpr", q, k) * 8**-0.5, dim=2)
    mixed = torch.einsum("bpr,bcr->bcp", weight, v)
    expected = x + layer.out(mixed.reshape(x.shape))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        (128, {}, "embedding_size of 100 or 144"),
        (81, {}, "64 or 100"),
        (64, {"multipliers": (1, 1, 1, 1, 1)}, "256"),
        (64, {"channels": 12}, "multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, options, said):
    with pytest.raises(ConfigError, match=said):
        SequentialUNet(10, size, **options)
