"""Check DiffuASR against its released code: same weights, sequences and noise must give the same numbers.

    git clone https://github.com/liuqidong07/DiffuASR
    python -m benchmarks.parity.diffuasr --released DiffuASR

Compares the noise schedules and, with all three guidances, the U-Net, the loss with its gradients, and samples. Prints
the largest relative differences, and fails above 1e-4. The released code is imported from its own folder; none of it is
copied here. Modules that it imports and that were not released are replaced by empty ones.

Our classifier is a sequence model of its own; here the released classifier guides both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.parity.released import add_folder, copy, finish, gap, gradient_gap, load, module, replaced
from rediffuse.batching.continuations import Continuation
from rediffuse.diffusion import noise_schedule
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.nn.unet import Attention, Down, ResidualBlock, SequentialUNet, Up

ITEMS, BATCH, SIZE, LENGTH, HISTORY, SCALE = 30, 7, 64, 10, 12, 1.5
SCHEDULES = {"linear": "linear", "quad": "quad", "sigmoid": "sigmoid", "cosine_clip": "cosine"}
NOT_RELEASED = ("transformer", "gru", "unet1d", "unet2d", "wavenet", "preference")
CLASSES = ("TrmModel", "GRUModel", "GuidedGRUModel", "UNet1d", "UNet2d", "DiffWave", "BertPref")


def main() -> None:
    add_folder(__doc__, "folder diffusion")
    for name in NOT_RELEASED:
        sys.modules[f"diffusion.{name}"] = module(f"diffusion.{name}", **dict.fromkeys(CLASSES))
    released = load("diffusion.diffusion", PIL=module("PIL", Image=None))
    torch.manual_seed(0)
    found = schedules(released)
    for guidance in ("none", "cf", "cg"):
        found |= compare(released, guidance)
    finish(found)


def arguments(**others: Any) -> Any:
    known = {"aug_num": LENGTH, "num_diffusion_timesteps": 1000, "hidden_size": SIZE, "train_batch_size": BATCH}
    known |= {"dm_scheduler": "linear", "noise_model": "unet", "guide": True, "rec_path": "", "rounding": False}
    known |= {"simple": False, "pref": False, "classifier_scale": SCALE, "guide_type": "item", "num_heads": 1}
    known |= {"max_len": 200, "dropout_rate": 0.0, "trm_num": 2}
    return SimpleNamespace(**known | others)


def schedules(released: Any) -> dict[str, float]:
    found = {}
    for name, theirs in SCHEDULES.items():
        model = released.DiffusionModel(1, ITEMS, "cpu", arguments(dm_scheduler=theirs))
        found[f"schedule {name}"] = gap(noise_schedule(name, 1000).alphas_cumprod, model.alpha_bar)
    return found


def compare(released: Any, guidance: str) -> dict[str, float]:
    kind = {"none": "DiffusionModel", "cf": "DiffusionModel_CF", "cg": "DiffusionModel_CG"}[guidance]
    options = {"guidance": guidance, "guidance_scale": SCALE, "backbone": None}
    ours = DiffuASR(DiffuASR.Config.build("released", options), ITEMS).eval()
    # The released program would read the classifier from a checkpoint; here it is new.
    if guidance == "cg":
        released.DiffusionModel_CG.load_classifier = lambda self, model: model
    theirs = getattr(released, kind)(1, ITEMS, "cpu", arguments()).eval()
    for mine, their in unet_weights(ours.generator, theirs.unet):
        copy(their, mine)
    # There 0 is the padding, items count from 1, and the mask comes last.
    vectors = ours.vectors(torch.arange(ITEMS))
    copy(theirs.item_emb.weight[1:-1], vectors)
    if guidance == "cf":
        nn.init.normal_(ours.no_condition)
        copy(theirs.place_embedding.weight, ours.no_condition)

    lengths = torch.arange(BATCH) % HISTORY + 1
    histories = [torch.randint(ITEMS, (int(length),)) for length in lengths]
    items, offsets = torch.cat(histories), F.pad(lengths.cumsum(0), (1, 0))[:-1]
    padded = torch.stack([F.pad(history + 1, (HISTORY - len(history), 0)) for history in histories])
    targets = torch.randint(ITEMS, (BATCH, LENGTH))
    losses = compare_loss(ours, theirs, Continuation(targets, items, offsets), padded)
    found = {f"{what}, guidance {guidance}": difference for what, difference in losses.items()}
    condition, first = ours.conditions(items, offsets), items[offsets]
    start = torch.randn(BATCH, LENGTH, SIZE)
    everything = torch.arange(1, ITEMS + 1).expand(BATCH, -1)
    ours.log_prob = lambda x, *_: -released_loss(theirs, x, first)  # type: ignore[method-assign]
    with torch.no_grad(), replaced(torch, randn=lambda *_, **__: start[:, None]):
        logits = torch.stack(theirs.predict(padded, everything), dim=1)
        sampled = ours.sample(condition, first, lambda _: start)
    found[f"samples, guidance {guidance}"] = gap(F.normalize(sampled, dim=2) @ F.normalize(vectors, dim=1).T, logits)
    return found


def compare_loss(ours: DiffuASR, theirs: Any, batch: Continuation, padded: Tensor) -> dict[str, float]:
    """The U-Net, and the loss with its gradients.

    In double precision: at the lowest level a normalisation has two numbers to go by, and multiplies rounding errors.
    """
    ours, theirs = deepcopy(ours).double(), deepcopy(theirs).double()
    theirs.alpha_bar = ours.schedule.alphas_cumprod
    copy(theirs.item_emb.weight[1:-1], ours.vectors(torch.arange(ITEMS)))
    for layer in (ours.generator.time[0], theirs.unet.temb.dense[0]):  # which read embeddings in single precision
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    half, noise = torch.randint(1000, (BATCH // 2 + 1,)), torch.randn(BATCH, LENGTH, SIZE, dtype=torch.float64)
    draws = {"randint": lambda *_, **__: half, "randn_like": lambda x: noise.reshape(x.shape)}
    first = batch.items[batch.offsets]
    ours.log_prob = lambda x, *_: -released_loss(theirs, x, first)  # type: ignore[method-assign]
    with replaced(torch, **draws), replaced(torch.Tensor, float=torch.Tensor.double):
        loss, their_loss = ours.loss(batch), theirs(batch.targets + 1, padded)
        condition, t = ours.conditions(batch.items, batch.offsets), torch.arange(BATCH) * 100
        found = {"U-Net": gap(ours.generator(noise, t, condition), theirs.unet(noise, t, condition))}
    shared = [*unet_weights(ours.generator, theirs.unet), (ours.own_vectors, theirs.item_emb.weight)]
    if ours.config.guidance == "cf":
        shared.append((ours.no_condition, theirs.place_embedding.weight))
    mine, their = (list(weights) for weights in zip(*shared, strict=True))
    gradients, their_gradients = torch.autograd.grad(loss, mine), [*torch.autograd.grad(their_loss, their)]
    place = len(list(unet_weights(ours.generator, theirs.unet)))
    their_gradients[place] = their_gradients[place][1:-1]  # without the padding and the mask
    return found | {"loss": gap(loss, their_loss), "gradients": gradient_gap(gradients, their_gradients)}


def released_loss(theirs: Any, x: Tensor, first: Tensor) -> Tensor:
    """(B,) the loss of the released classifier at the first own item."""
    mask = theirs.item_emb(torch.full((len(x), 1), theirs.mask_token)).detach()
    return theirs.classifier(x, theirs.item_emb(first + 1).detach(), mask)


def unet_weights(ours: SequentialUNet, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Our weights beside the released ones."""
    modules = [(ours.time[0], theirs.temb.dense[0]), (ours.time[2], theirs.temb.dense[1])]
    modules += [(ours.condition[0], theirs.guide_emb.dense[0]), (ours.condition[2], theirs.guide_emb.dense[1])]
    modules += [(ours.enter, theirs.conv_in), (ours.leave_norm, theirs.norm_out), (ours.leave, theirs.conv_out)]
    parts: list[Any] = []
    for level in theirs.down:
        parts += [*level.block, *([level.downsample] if hasattr(level, "downsample") else [])]
    parts += [theirs.mid.block_1, theirs.mid.attn_1, theirs.mid.block_2]
    for level in reversed(theirs.up):
        parts += [*level.block, *([level.upsample] if hasattr(level, "upsample") else [])]
    for mine, their in zip([*ours.down, *ours.middle, *ours.up], parts, strict=True):
        modules += layers(mine, their)
    for mine, their in modules:
        yield from zip(mine.parameters(), their.parameters(), strict=True)


def layers(ours: nn.Module, theirs: Any) -> list[tuple[Any, Any]]:
    if isinstance(ours, Down | Up):
        return [(ours.conv, theirs.conv)]
    if isinstance(ours, Attention):
        names = {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"}
    else:
        assert isinstance(ours, ResidualBlock)
        names = {"norm_in": "norm1", "first": "conv1", "time": "temb_proj", "norm_out": "norm2", "second": "conv2"}
        if not isinstance(ours.shortcut, nn.Identity):
            names["shortcut"] = "nin_shortcut"
    return [(getattr(ours, mine), getattr(theirs, their)) for mine, their in names.items()]


if __name__ == "__main__":
    main()
