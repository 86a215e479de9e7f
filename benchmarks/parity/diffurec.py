"""Check DiffuRec against its released code: same weights, inputs and noise must give the same numbers.

    git clone https://github.com/WHUIR/DiffuRec
    python -m benchmarks.parity.diffurec --released DiffuRec/src

Prints the largest absolute differences, and fails above 1e-4. The released code is imported from its own folder; none
of it is copied here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rediffuse.diffusion import q_sample, solver
from rediffuse.losses import softmax_cross_entropy
from rediffuse.models.diffurec import DiffuRec

ITEMS, SIZE, LENGTH, STEPS = 40, 16, 12, 32
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, required=True, help="folder with the released model.py")
    sys.path.insert(0, str(parser.parse_args().released))
    vars(np)["int"] = int  # the released code uses this name, which numpy removed
    theirs = released_model()
    ours = DiffuRec(
        DiffuRec.Config.build("released", {"embedding_size": SIZE, "max_length": LENGTH, "sampling_steps": STEPS}),
        ITEMS,
    ).eval()
    copy_weights(ours, theirs)

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
    torch.normal = lambda mean, std: mean  # type: ignore[assignment]  # lambda without noise, in both
    silent = torch.zeros_like

    differences: dict[str, float] = {}
    with torch.no_grad():
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
        torch.randn_like = lambda _: next(source)  # type: ignore[assignment]
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
    for what, difference in differences.items():
        print(f"{what:<20} {difference:.2e}")
    if max(differences.values()) > TOLERANCE:
        sys.exit(f"differs by more than {TOLERANCE}")


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def released_model() -> Any:
    model = importlib.import_module("model")
    arguments = SimpleNamespace(
        hidden_size=SIZE,
        item_num=ITEMS,
        emb_dropout=0.3,
        max_len=LENGTH,
        dropout=0.1,
        schedule_sampler_name="lossaware",
        diffusion_steps=STEPS,
        noise_schedule="trunc_lin",
        rescale_timesteps=True,
        lambda_uncertainty=0.001,
        num_blocks=4,
    )
    return model.Att_Diffuse_model(model.create_model_diffu(arguments), arguments).eval()


def copy_weights(ours: DiffuRec, theirs: Any) -> None:
    """Copy our weights into the released network; our query, key and value projections are one matrix."""
    mine, network = ours.approximator, theirs.diffu.xstart_model
    with torch.no_grad():
        table = ours.item_embedding.weight
        theirs.item_embeddings.weight.copy_(torch.cat((table[-1:], table[:-1])))
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
            for index, linear in enumerate(other.attention.linear_layers):
                rows = slice(index * SIZE, (index + 1) * SIZE)
                linear.weight.copy_(block.qkv.weight[rows])
                linear.bias.copy_(block.qkv.bias[rows])
        for source, target in pairs:
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)


if __name__ == "__main__":
    main()
