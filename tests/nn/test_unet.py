"""The U-Net of DiffuASR: shapes and numbers of the specification (D2.3, D8), and what it refuses."""

from __future__ import annotations

import pytest
import torch

from rediffuse.errors import ConfigError
from rediffuse.nn.time_embedding import ddpm_embedding
from rediffuse.nn.unet import Attention, Down, SequentialUNet

RELEASED = {"channels": 8, "multipliers": (1, 2, 2, 2), "condition_size": 64}


@pytest.mark.parametrize(("length", "count"), [(10, 141_818), (5, 141_093)])
def test_the_released_network_has_the_released_number_of_parameters(length, count):
    net = SequentialUNet(length, 64, **RELEASED)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(p.numel() for p in net.condition.parameters()) == 3_136


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
    expected = [-0.95892, 0.23000, 0.010772, 0.0005, 0.28366, 0.97319, 0.99994, 1.0]
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


def test_attention_is_the_textbooks():
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
