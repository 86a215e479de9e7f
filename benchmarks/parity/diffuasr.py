"""Check DiffuASR against its released code: same weights, sequences and noise must give the same numbers.

    git clone https://github.com/liuqidong07/DiffuASR
    python -m benchmarks.parity.diffuasr --released DiffuASR

Compares the noise schedules and, with all three guidances, samples and one whole epoch of the generator on the first
users of MovieLens-100K, which the released training loop and ours train from the same weights, on the same histories
and noise, without dropout. Prints the largest relative differences, and fails above 1e-4. The released code is imported
from its own folder; none of it is copied here. Modules that it imports and that were not released are replaced by empty
ones.

Our classifier is a sequence model of its own; here the released classifier guides both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.parity.epoch import Epoch, compare_epoch, first_users, in_double, new_trainer, train_epoch
from benchmarks.parity.released import add_folder, copy, finish, gap, load, module, quietly, replaced
from rediffuse.data.histories import Histories
from rediffuse.diffusion import noise_schedule
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.nn.unet import Attention, Down, ResidualBlock, SequentialUNet, Up

ITEMS, BATCH, SIZE, LENGTH, HISTORY, SCALE = 30, 7, 64, 10, 12, 1.5
SCHEDULES = {"linear": "linear", "quad": "quad", "sigmoid": "sigmoid", "cosine_clip": "cosine"}
NOT_RELEASED = ("transformer", "gru", "unet1d", "unet2d", "wavenet", "preference", "diffusionlm")
CLASSES = ("TrmModel", "GRUModel", "GuidedGRUModel", "UNet1d", "UNet2d", "DiffWave", "BertPref", "DiffusionLM")
# Of the epoch. With the program's vectors of 64 numbers, the lowest level normalises pairs of numbers, and multiplies
# rounding errors a thousandfold in each layer; with 256, it normalises eight.
USERS, USERS_PER_STEP, WIDTH = 350, 64, 256


def main() -> None:
    add_folder(__doc__, "folder diffusion")
    for name in NOT_RELEASED:
        sys.modules[f"diffusion.{name}"] = module(f"diffusion.{name}", **dict.fromkeys(CLASSES))
    released = load("diffusion.diffusion", PIL=module("PIL", Image=None))
    set_config = released.DiffusionModel.set_config

    def without_attention(theirs: Any) -> None:
        """Images of 16 x 16 would get a layer of attention, which those of 8 x 8 do not have."""
        set_config(theirs)
        theirs.config.model.attn_resolutions = []

    released.DiffusionModel.set_config = without_attention
    torch.manual_seed(0)
    found = schedules(released)
    for guidance in ("none", "cf", "cg"):
        found |= compare(released, guidance)
        with in_double():
            found |= compare_one_epoch(released, guidance)
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


def our_options(guidance: str, **others: Any) -> Any:
    options = {"guidance": guidance, "guidance_scale": SCALE, "backbone": None, "backbone_options": {}}
    return DiffuASR.Config.build("released", options | others)


def released_model(released: Any, ours: DiffuASR, **others: Any) -> Any:
    """The released model of the same guidance, with our weights, which guides ours too."""
    guidance = ours.config.guidance
    kind = {"none": "DiffusionModel", "cf": "DiffusionModel_CF", "cg": "DiffusionModel_CG"}[guidance]
    # The released program would read the classifier from a checkpoint; here it is new.
    released.DiffusionModel_CG.load_classifier = lambda self, model: model
    theirs = getattr(released, kind)(1, ours.num_items, "cpu", arguments(**others))
    for mine, their in weights(ours, theirs):
        copy(their, mine)

    def log_prob(x: Tensor, first: Tensor, *_: Any) -> Tensor:
        """What the released classifier says of the first own item."""
        mask = theirs.item_emb(torch.full((len(x), 1), theirs.mask_token)).detach()
        return -theirs.classifier(x, ours.vectors(first).detach(), mask)

    ours.log_prob = log_prob  # type: ignore[method-assign]
    return theirs


def compare(released: Any, guidance: str) -> dict[str, float]:
    ours = DiffuASR(our_options(guidance), ITEMS).eval()
    theirs = released_model(released, ours).eval()
    vectors = ours.vectors(torch.arange(ITEMS))

    lengths = torch.arange(BATCH) % HISTORY + 1
    histories = [torch.randint(ITEMS, (int(length),)) for length in lengths]
    items, offsets = torch.cat(histories), F.pad(lengths.cumsum(0), (1, 0))[:-1]
    padded = torch.stack([F.pad(history + 1, (HISTORY - len(history), 0)) for history in histories])
    condition, first = ours.conditions(items, offsets), items[offsets]
    start = torch.randn(BATCH, LENGTH, SIZE)
    everything = torch.arange(1, ITEMS + 1).expand(BATCH, -1)
    with torch.no_grad(), replaced(torch, randn=lambda *_, **__: start[:, None]):
        logits = torch.stack(theirs.predict(padded, everything), dim=1)
        sampled = ours.sample(condition, first, lambda _: start)
    cosines = F.normalize(sampled, dim=2) @ F.normalize(vectors, dim=1).T
    return {f"samples, guidance {guidance}": gap(cosines, logits)}


def compare_one_epoch(released: Any, guidance: str) -> dict[str, float]:
    split = first_users("ml-100k", USERS)
    options = our_options(
        guidance, generator_batch=USERS_PER_STEP, classifier={"embedding_size": WIDTH, "max_length": 200}
    )
    trainer = new_trainer(DiffuASR, options, split)
    ours: Any = trainer.model
    theirs = released_model(released, ours, train_batch_size=USERS_PER_STEP, hidden_size=WIDTH)
    for layer in (*ours.generator.modules(), *theirs.unet.modules()):
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    before = [mine.detach().clone() for mine, _ in weights(ours, theirs)]
    epoch = train_epoch(trainer, "generator", trainer.begin_phase("generator"))
    batches = trainer.batches("generator", 0)
    users = [user for index in range(len(batches)) for user in batches.users(index).tolist()]
    losses = train_released(theirs, epoch, users, trainer.data.train)
    with torch.no_grad():
        found = compare_epoch(epoch, losses, weights(ours, theirs), before)
    return {f"{what}, guidance {guidance}": difference for what, difference in found.items()}


def train_released(theirs: Any, epoch: Epoch, users: list[int], train: Histories) -> list[float]:
    """Let the released loop train an epoch on its own batches of our users, and our draws; the losses of its steps."""
    options = arguments(train_batch_size=USERS_PER_STEP, lr=1e-3, l2=0, ema=False)
    data = load("generators.diffusion_generator")
    histories = {user: (train.row(user) + 1).tolist() for user in range(len(train))}
    with quietly():
        long = data.filter_data(data.unzip_data(histories, aug=False), thershold=LENGTH + 2)
    dataset = data.DiffusionTrainDataset(long, theirs.item_emb.num_embeddings - 2, LENGTH, options.max_len)
    order = [long.index(histories[user]) for user in users]
    losses: list[float] = []
    forward = theirs.forward

    def drawn(*inputs: Any) -> Tensor:
        draws = epoch.draws[len(losses)]
        (half,), (noise,) = draws["randint"], draws["randn_like"]
        with replaced(torch, randint=lambda *_, **__: half, randn_like=lambda x: noise.reshape(x.shape)):
            loss = forward(*inputs)
        losses.append(float(loss.detach()))
        return loss

    loop, nothing = load("trainers.diffusion_trainer").DiffusionTrainer, SimpleNamespace()
    nothing.info = nothing.add_scalar = lambda *_: None
    session = SimpleNamespace(model=theirs, args=options, device="cpu", logger=nothing, writer=nothing)
    session.train_loader = data.DataLoader(dataset, sampler=order, batch_size=options.train_batch_size, drop_last=True)
    loop._set_optimizer(session)
    with replaced(theirs, forward=drawn), quietly():
        loop._train_one_epoch(session, 0)
    return losses


def weights(ours: DiffuASR, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Our weights beside the released ones."""
    yield from unet_weights(ours.generator, theirs.unet)
    yield ours.own_vectors, theirs.item_emb.weight[1:-1]  # there 0 is the padding, and the mask comes last
    if ours.config.guidance == "cf":
        yield ours.no_condition, theirs.place_embedding.weight


def unet_weights(ours: SequentialUNet, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
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
