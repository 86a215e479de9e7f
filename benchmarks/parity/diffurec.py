"""Check DiffuRec against its released code: same weights, inputs and noise must give the same numbers.

    git clone https://github.com/WHUIR/DiffuRec
    python -m benchmarks.parity.diffurec --released DiffuRec/src

Prints the largest relative differences, and fails above 1e-4: of the parts on random inputs, then of one whole epoch on
the first users of Amazon Beauty, which the released training loop and ours train from the same weights, on the same
batches, noise and timesteps, without dropout. The released code is imported from its own folder; none of it is copied
here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.parity.epoch import Epoch, compare_epoch, first_users, in_double, new_trainer, train_epoch
from benchmarks.parity.released import add_folder, copy, finish, gap, load, quietly, replaced
from rediffuse.diffusion import q_sample, solver
from rediffuse.losses import softmax_cross_entropy
from rediffuse.models.diffurec import DiffuRec

ITEMS, SIZE, LENGTH, STEPS = 40, 16, 12, 32
# Of the epoch: users of Amazon Beauty, and a width that keeps it short.
USERS, WIDTH = 500, 32


def main() -> None:
    add_folder(__doc__, "model.py")
    vars(np)["int"] = int  # the released code uses this name, which numpy removed
    found = compare_parts()
    with in_double():
        found |= compare_one_epoch()
    finish(found)


def compare_parts() -> dict[str, float]:
    theirs = released_model(ITEMS, SIZE, LENGTH).eval()
    ours = DiffuRec(DiffuRec.Config.build("released", {"embedding_size": SIZE, "max_length": LENGTH}), ITEMS).eval()
    for mine, their in weights(ours, theirs):
        copy(their, mine)

    rng = torch.Generator().manual_seed(1)
    lengths = torch.tensor([1, 5, LENGTH, 3])
    items = torch.randint(ITEMS, (4, LENGTH), generator=rng)
    items[torch.arange(LENGTH) >= lengths[:, None]] = ITEMS
    targets = torch.randint(ITEMS, (4,), generator=rng)
    x_0, noise = ours.item_embedding(targets), torch.randn(4, SIZE, generator=rng)
    t = torch.tensor([0, 7, 20, 31])

    # The released code pads on the left with 0 and numbers items from 1.
    left = torch.zeros(4, LENGTH, dtype=torch.int64)
    for row, n in enumerate(lengths.tolist()):
        left[row, LENGTH - n :] = items[row, :n] + 1
    mask = (left > 0).float()
    silent = torch.zeros_like  # lambda without noise, in both

    differences: dict[str, float] = {}
    with torch.no_grad(), replaced(torch, normal=lambda mean, std: mean):
        z_theirs = theirs.LayerNorm(theirs.embed_dropout(theirs.item_embeddings(left)))
        z = ours.approximator.history(ours.item_embedding(items))
        x_t, x_t_theirs = q_sample(ours.schedule, x_0, t, noise), theirs.diffu.q_sample(x_0, t, noise)
        differences["x_t"] = gap(x_t, x_t_theirs)
        hat = ours.approximator(z, lengths, x_t, t, silent)
        hat_theirs, _ = theirs.diffu.xstart_model(z_theirs, x_t_theirs, theirs.diffu._scale_timesteps(t), mask)
        differences["x0_hat"] = gap(hat, hat_theirs)
        # Our padding row is the last class, the released one the first.
        loss, _ = softmax_cross_entropy(hat, ours.classes(), targets)
        differences["loss"] = gap(loss, theirs.loss_diffu_ce(hat_theirs, targets[:, None] + 1))

        draws = [torch.randn(4, SIZE, generator=rng) for _ in range(STEPS + 1)]
        source = iter(draws[1:])
        with replaced(torch, randn_like=lambda _: next(source)):
            end_theirs = theirs.diffu.reverse_p_sample(z_theirs, draws[0], mask)
        ours_source = iter(draws[1:])
        end = solver("ancestral")(
            lambda x, t: ours.approximator(z, lengths, x, t, silent),
            draws[0],
            ours.schedule,
            generator=lambda _: next(ours_source),
            variance="fixed_large",
        )
        differences["x_0 after 32 steps"] = gap(end, end_theirs)
        scores = end @ ours.catalogue().T
        differences["scores"] = gap(scores, theirs.diffu_rep_pre(end_theirs)[:, 1:])
    return differences


def compare_one_epoch() -> dict[str, float]:
    split = first_users("amazon-beauty", USERS)
    options = DiffuRec.Config.build("released", {"embedding_size": WIDTH, "dropout": 0.0, "embedding_dropout": 0.0})
    trainer = new_trainer(DiffuRec, options, split)
    ours: Any = trainer.model
    theirs = released_model(split.dataset.num_items, WIDTH, options.max_length, dropout=0.0)
    before = []
    for mine, their in weights(ours, theirs):
        copy(their, mine)
        before.append(mine.detach().clone())
    epoch = train_epoch(trainer, "fit", trainer.begin_phase("fit"))
    losses = train_released(theirs, epoch, ours.num_items, options.max_length)
    with torch.no_grad():
        return compare_epoch(epoch, losses, weights(ours, theirs), before)


def train_released(theirs: Any, epoch: Epoch, num_items: int, width: int) -> list[float]:
    """Let the released loop train an epoch on our batches and draws; returns the losses of its steps."""
    losses: list[float] = []
    step = -1
    forward, loss_of = theirs.forward, theirs.loss_diffu_ce

    def left(x: Tensor, lengths: Tensor) -> Tensor:
        """Rows that are padded on the right, padded on the left."""
        places = torch.arange(width) - width + lengths[:, None]
        return x[torch.arange(len(x))[:, None], places % width]

    class Loader(list[Any]):
        """Our batches, as theirs."""

        def __iter__(self) -> Iterator[list[Tensor]]:
            nonlocal step
            for batch in epoch.batches:
                step += 1
                items = F.pad(batch.items, (0, width - batch.items.shape[1]), value=num_items)
                yield [(left(items, batch.lengths) + 1) % (num_items + 1), batch.targets[:, None] + 1]

    def drawn(*inputs: Any, **options: Any) -> Any:
        """A forward pass on our draws. There the weights of tokens are N(delta, delta), here delta (1 + N(0, 1))."""
        noise, of_tokens = epoch.draws[step]["randn_like"]
        of_tokens = left(of_tokens, epoch.batches[step].lengths)
        sampler, timesteps = theirs.diffu.schedule_sampler, epoch.draws[step]["multinomial"][0]
        with (
            replaced(torch, randn_like=lambda _: noise, normal=lambda mean, std: mean + std * of_tokens),
            replaced(sampler, sample=lambda *_: (timesteps, None)),
        ):
            return forward(*inputs, **options)

    def kept(*inputs: Any) -> Tensor:
        loss = loss_of(*inputs)
        losses.append(float(loss))
        return loss

    arguments = released_arguments(num_items, WIDTH, width)
    vars(arguments).update(
        epochs=1, eval_interval=20, decay_step=100, gamma=0.1, patience=5, metric_ks=[10], device="cpu", num_gpu=1
    )
    vars(arguments).update(optimizer="Adam", lr=1e-3, weight_decay=0, diversity_measure=False)
    with replaced(theirs, forward=drawn, loss_diffu_ce=kept), quietly():
        load("trainer").model_train(Loader(epoch.batches), [], [], theirs, arguments, logging.getLogger("released"))
    return losses


def released_arguments(items: int, size: int, length: int, dropout: float = 0.1) -> Any:
    """What the released command line gives by default."""
    return SimpleNamespace(
        hidden_size=size,
        item_num=items,
        emb_dropout=3 * dropout,
        max_len=length,
        dropout=dropout,
        schedule_sampler_name="lossaware",
        diffusion_steps=STEPS,
        noise_schedule="trunc_lin",
        rescale_timesteps=True,
        lambda_uncertainty=0.001,
        num_blocks=4,
    )


def released_model(items: int, size: int, length: int, dropout: float = 0.1) -> Any:
    model, arguments = load("model"), released_arguments(items, size, length, dropout)
    return model.Att_Diffuse_model(model.create_model_diffu(arguments), arguments)


def weights(ours: DiffuRec, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Our weights beside the released ones. Our query, key and value projections are one matrix."""
    mine, network = ours.approximator, theirs.diffu.xstart_model
    table = ours.item_embedding.weight  # our padding is the last row, theirs the first
    yield table[:-1], theirs.item_embeddings.weight[1:]
    yield table[-1], theirs.item_embeddings.weight[0]
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (mine.norm, theirs.LayerNorm),
        (mine.time[0], network.time_embed[0]),
        (mine.time[2], network.time_embed[2]),
        (mine.encoder.norm, network.norm_diffu_rep),
    ]
    for block, other in zip(mine.encoder.blocks, network.att.transformer_blocks, strict=True):
        pairs += [
            (block.norm_attention, other.input_sublayer.norm),
            (block.out, other.attention.w_layer),
            (block.norm_feed, other.output_sublayer.norm),
            (block.expand, other.feed_forward.w_1),
            (block.contract, other.feed_forward.w_2),
        ]
        size = block.out.in_features
        for index, linear in enumerate(other.attention.linear_layers):
            rows = slice(index * size, (index + 1) * size)
            yield block.qkv.weight[rows], linear.weight
            yield block.qkv.bias[rows], linear.bias
    for source, target in pairs:
        yield source.weight, target.weight  # type: ignore[misc]
        yield source.bias, target.bias  # type: ignore[misc]


if __name__ == "__main__":
    main()
