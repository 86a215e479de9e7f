"""Item tables with content, against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from rediffuse.nn.item_table import ItemTable

ITEMS, SIZE = 7, 4
LEARNED = np.asarray([True, True, False, True, True, False, True])


@pytest.fixture
def content():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(ITEMS, 3)).astype(np.float32)
    matrix = sparse.csr_array((rng.random((ITEMS, 5)) < 0.4).astype(np.float32))
    return matrix, dense


@pytest.fixture
def table(content):
    torch.manual_seed(1)
    found = ItemTable(ITEMS + 1, SIZE)
    found.describe(*content, LEARNED, 0.5)
    return found.eval()


def expected(table, content):
    matrix, dense = content
    own = table.weight.detach().numpy()[:ITEMS] * LEARNED[:, None]
    weights = [table.content.sparse_weight.detach().numpy(), table.content.dense_weight.detach().numpy()]
    return own + matrix.toarray() @ weights[0] + dense @ weights[1]


def test_without_content_it_is_an_embedding():
    plain = ItemTable(ITEMS, SIZE)
    items = torch.tensor([[1, 2], [2, 6]])
    assert torch.equal(plain(items), plain.weight[items])
    assert plain.all() is plain.weight
    assert list(plain.state_dict()) == ["weight"]


def test_vectors_are_own_vectors_and_projected_content(table, content):
    wanted = expected(table, content)
    torch.testing.assert_close(table.all()[:ITEMS], torch.from_numpy(wanted))
    items = torch.tensor([[1, 2, 2], [6, 0, 5]])
    torch.testing.assert_close(table(items), torch.from_numpy(wanted)[items])
    padding = torch.tensor([ITEMS])
    assert not table(padding).any()  # it has no content, and is no item with an interaction


def test_gradients_are_those_of_dense_arithmetic(table, content):
    items = torch.tensor([[1, 2, 2], [6, 0, 5]])
    factor = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(2))
    (table(items) * factor).sum().backward()
    matrix, dense = content
    for weight, features in ((table.content.sparse_weight, matrix.toarray()), (table.content.dense_weight, dense)):
        wanted = torch.einsum("bif,bid->fd", torch.from_numpy(features)[items], factor)
        torch.testing.assert_close(weight.grad, wanted)
    assert not table.weight.grad[2].any()
    torch.testing.assert_close(table.weight.grad[6], factor[1, 0])


def test_ids_are_dropped_in_training_alone(table, content):
    whole = table.all()
    table.train()
    torch.manual_seed(0)
    alone = table.content(None)
    dropped = torch.stack([(table.all() == alone).all(1) for _ in range(200)])
    share = dropped.float().mean(0)[:ITEMS][torch.from_numpy(LEARNED)]
    assert ((share > 0.35) & (share < 0.65)).all()
    assert dropped[:, 2].all()
    assert torch.equal(table.eval().all(), whole)


def test_a_state_dict_restores_the_content(table):
    other = ItemTable(ITEMS + 1, SIZE)
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.eval().all(), table.all())


@pytest.mark.parametrize("padding", [0, 1])
def test_rows_are_added_before_the_padding(content, padding):
    torch.manual_seed(3)
    old = ItemTable(ITEMS + padding, SIZE)
    old.describe(*content, LEARNED, 0.5)
    old.eval()
    state = dict(old.state_dict())
    old.add_rows(state, "", ITEMS, 2)
    new = ItemTable(ITEMS + 2 + padding, SIZE)
    new.load_state_dict(state)
    new.eval()
    matrix, dense = (part[[3, 1]] for part in content)
    new.content.describe_added(matrix, dense, ITEMS)
    torch.testing.assert_close(new.all()[:ITEMS], old.all()[:ITEMS])
    torch.testing.assert_close(new.all()[ITEMS : ITEMS + 2], old.content(torch.tensor([3, 1])))
    assert torch.equal(new.all()[ITEMS + 2 :], old.all()[ITEMS:])
