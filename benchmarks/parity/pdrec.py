"""Check PDRec against its released code: one whole epoch of each phase must give the same losses and weights.

    git clone https://github.com/hulkima/PDRec
    python -m benchmarks.parity.pdrec --released PDRec

On the first users of MovieLens-100K, TI-DiffRec trains an epoch in the released loop and in ours, from the same
weights, on the same users, noise and timesteps; then the two compute the signals, and GRU4Rec trains an epoch with
them, on the same users and negatives. There is no dropout. Prints the largest relative differences, and fails above
1e-4. The released code is read from its own folder; none of it is copied here. The loops are part of its scripts, which
cannot be imported: they are cut out of them by their syntax and run on these inputs, on a CPU.

The released program takes validation and test items out of the negatives. Here there are no such items.
"""

from __future__ import annotations

import ast
import copy as deep
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.parity.epoch import Epoch, compare_epoch, first_users, in_double, new_trainer, train_epoch
from benchmarks.parity.released import add_folder, copy, finish, gap, load, module, quietly, replaced, stay_on_cpu
from rediffuse.models.pdrec import PDRec
from rediffuse.models.pdrec_released import PaddedGRU, PaddedTDiffRec
from rediffuse.training.loop import Trainer

USERS, HIDDEN, LENGTH = 300, 64, 60
OPTIONS = {
    **{"rank_share": 0.3, "largest": 1.4, "scale": 2.0, "band_from": 40.0, "band_to": 70.0},
    **{"candidates": 12, "liked": 3, "positive_weight": 0.3, "batch_size": 32},
    "backbone_options": {"embedding_size": 16, "dropout": 0.0, "max_length": LENGTH, "temperature": 0.2},
    "diffusion": {"hidden_sizes": (HIDDEN,), "dropout": 0.0, "weighting": "interval", "weight_min": 0.3}
    | {"diffusion_steps": 10, "noise_scale": 0.01, "noise_min": 5e-4, "noise_max": 0.01}
    | {"batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.5},
}


def main() -> None:
    folder = add_folder(__doc__, "PDRec.py")
    stay_on_cpu()
    metrics = module("sklearn.metrics", roc_auc_score=None)
    for name, stand_in in {"ipdb": None, "dill": None, "sklearn": module("sklearn", metrics=metrics)}.items():
        sys.modules.setdefault(name, stand_in or module(name))
    sys.modules.setdefault("sklearn.metrics", metrics)
    with in_double():
        split = first_users("ml-100k", USERS)
        trainer = new_trainer(PDRec, PDRec.Config.build("released", OPTIONS), split)
        names = released_names(trainer.model, trainer.data.train)
        found = compare_phase(trainer, "diffusion", trainer.begin_phase("diffusion"), names, folder)
    # Signals, in single precision. Scores are made to be far apart, so that rounding does not change a ranking.
    ours: Any = trainer.model.float()
    nn.init.normal_(ours.diffusion.denoiser.last.bias)
    names["model_diff"].float().eval()
    for mine, their in diffusion_weights(ours, names):
        copy(their, mine)
    begun = trainer.begin_phase("backbone")
    with torch.no_grad():
        run(names, folder, "PDRec.py", "functions", "signals")
        found |= compare_signals(names, ours)
    with in_double():
        names["diff_matrix"] = names["diff_matrix"].double()
        ours.double()
        found |= compare_phase(trainer, "backbone", begun, names, folder)
    finish(found)


def compare_phase(
    trainer: Trainer, phase: str, begun: tuple[Any, ...], names: dict[str, Any], folder: Path
) -> dict[str, float]:
    ours: Any = trainer.model
    weights, train = {
        "diffusion": (diffusion_weights, train_diffusion),
        "backbone": (backbone_weights, train_backbone),
    }[phase]
    before = []
    for mine, their in weights(ours, names):
        copy(their, mine)
        before.append(mine.detach().clone())
    epoch = train_epoch(trainer, phase, begun)
    with quietly():
        losses = train(names, folder, ours, epoch)
    with torch.no_grad():
        compared = compare_epoch(epoch, losses, weights(ours, names), before)
    return {f"{what}, {phase}": difference for what, difference in compared.items()}


def run(names: dict[str, Any], folder: Path, script: str, *parts: str) -> None:
    """Execute parts of a released script in ``names``: its functions, the loop over users that makes the signals, what
    makes an optimiser, or the loop over batches up to the optimiser's step."""
    tree = ast.parse((folder / script).read_text(encoding="utf-8"))
    found: dict[str, list[ast.stmt]] = {"functions": [node for node in tree.body if isinstance(node, ast.FunctionDef)]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "cuda":
            node.value = "cpu"
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            if node.target.id == "u" and "p_sample" in ast.dump(node):
                found["signals"] = [node]
            elif node.target.id == "step":
                ends = [place for place, line in enumerate(node.body) if "optimizer.step()" in ast.unparse(line)]
                found["step"] = node.body[: ends[0] + 1]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("optimizer", "adam_optimizer"):
            found["optimizer"] = [node]
    for part in parts:
        body = ast.Module(body=found[part], type_ignores=[])
        exec(compile(ast.fix_missing_locations(body), f"{script} ({part})", "exec"), names)


def released_names(ours: Any, train: Any) -> dict[str, Any]:
    """What the released scripts know. There users and items count from 1, and 0 is the padding."""
    config, utils, items = ours.config, load("utils.utils"), ours.num_items
    of_diffusion, backbone = ours.diffusion.config, config.backbone_config()
    first, last = math.floor(items * config.band_from / 100), math.ceil(items * config.band_to / 100)
    lists = {u + 1: (train.row(u) + 1).tolist() for u in range(USERS)}
    times = {u + 1: train.times[train.offsets[u] : train.offsets[u + 1]].tolist() for u in range(USERS)}
    args = SimpleNamespace(
        w_min=of_diffusion.weight_min,
        w_max=1.0,
        reweight_version="AllOne",
        reweight=True,
        sampling_steps=0,
        sampling_noise=False,
        top_candidate_coarse_num=config.candidates,
        top_candidate_fine_num=config.liked,
        top_candidate_weight=config.positive_weight,
        rank_weight=config.rank_share,
        scale_max=config.largest,
        scale_weight=config.scale,
        maxlen=LENGTH,
        hidden_units=backbone.embedding_size,
        device="cpu",
        temperature=1 / (backbone.temperature or 1.0),
        dataset="",
        dropout_rate=0.0,
    )
    dnn, process = load("models.DNN"), load("models.gaussian_diffusion")
    levels = (of_diffusion.noise_scale, of_diffusion.noise_min, of_diffusion.noise_max, of_diffusion.diffusion_steps)
    diffusion = process.GaussianDiffusion(process.ModelMeanType.START_X, "linear-var", *levels, torch.device("cpu"))
    names: dict[str, Any] = {"args": args, "torch": torch, "np": np, "copy": deep, "optim": torch.optim}
    names |= {name: getattr(utils, name) for name in ("scale_withminmax", "del_tensor_ele")}
    names["diffusion"] = diffusion
    names["model_diff"] = dnn.DNN([items + 1, HIDDEN], [HIDDEN, items + 1], of_diffusion.time_size, dropout=0.0)
    names["model_gru"] = load("models.model").GRU4Rec_withNeg_Dist(USERS, items, args)
    names |= {"user_train_mix": lists, "user_train_source": lists, "user_train_target": lists}
    names |= {"user_train_ti_target": times, "usernum": USERS, "itemnum": items}
    names["user_valid_target"] = names["user_test_target"] = {u: [] for u in lists}
    names |= {"random_min": 1, "random_max": items + 1, "item_list": torch.arange(1, items + 1)}
    names |= {"candidate_min_user": first, "candidate_max_user": last}
    names["user_nearest_item_raw"] = torch.zeros(USERS + 1, last - first, dtype=torch.int32)
    names["user_top_item_raw"] = torch.zeros(USERS + 1, config.candidates, dtype=torch.int32)
    names["diff_matrix"], names["weight_matrix"] = (torch.zeros(USERS + 1, items + 1) for _ in range(2))
    return names


def diffusion_weights(ours: PDRec, names: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Our weights of TI-DiffRec beside the released ones. Our padding is the last column, theirs the first."""
    assert isinstance(ours.diffusion, PaddedTDiffRec)
    mine, network, items = ours.diffusion.denoiser, names["model_diff"], ours.num_items
    first, last = network.in_layers[0], network.out_layers[0]
    yield mine.first[:-1].T, first.weight[:, 1 : items + 1]
    yield mine.first[-1], first.weight[:, 0]
    yield mine.first_time.weight, first.weight[:, items + 1 :]
    yield mine.first_time.bias, first.bias
    yield from zip(mine.time.parameters(), network.emb_layer.parameters(), strict=True)
    for own, their in ((mine.last.weight, last.weight), (mine.last.bias, last.bias)):
        yield own[:-1], their[1:]
        yield own[-1], their[0]


def backbone_weights(ours: PDRec, names: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    mine, theirs = ours.backbone, names["model_gru"]
    assert isinstance(mine, PaddedGRU)
    table = mine.item_embedding.weight
    yield table[:-1], theirs.source_item_emb.weight[1:]
    yield table[-1], theirs.source_item_emb.weight[0]
    yield from zip(mine.gru.parameters(), theirs.gru_source.parameters(), strict=True)
    yield mine.start, theirs.h0_source


def train_diffusion(names: dict[str, Any], folder: Path, ours: PDRec, epoch: Epoch) -> list[float]:
    """Let the released loop train TI-DiffRec on our rows and draws; the losses of its steps."""
    options, losses, items = ours.training_options("diffusion"), [], ours.num_items
    names["args"].lr, names["args"].weight_decay = options.learning_rate, options.weight_decay
    names |= {"model": names["model_diff"], "epoch": 1, "batch_count": 0, "total_loss": 0.0}
    run(names, folder, "TI_DiffRec.py", "optimizer")
    for step, batch in enumerate(epoch.batches):
        rows = batch.dense(items + 1).roll(1, dims=1).double().numpy()
        names["sampler"] = SimpleNamespace(next_batch=lambda rows=rows: [rows] * 7)
        (t,), (noise,) = epoch.draws[step]["multinomial"], epoch.draws[step]["randn_like"]
        timesteps, noise = (lambda *_, t=t, **__: t), noise.roll(1, dims=1)
        with replaced(torch, randn_like=lambda _, noise=noise: noise, randint=timesteps, multinomial=timesteps):
            run(names, folder, "TI_DiffRec.py", "step")
        losses.append(names["loss"].item())
    return losses


def compare_signals(names: dict[str, Any], ours: PDRec) -> dict[str, float]:
    assert isinstance(ours.diffusion, PaddedTDiffRec)
    assert ours.signals is not None
    scores, signals, items = ours.diffusion.score_with_padding(ours.train_histories), ours.signals, ours.num_items
    bands = [set(np.flatnonzero(np.unpackbits(row, count=items, bitorder="little")) + 1) for row in signals.bands]
    theirs = [set(row.tolist()) for row in names["user_nearest_item_raw"][1:]]
    top = torch.from_numpy(signals.positives) != names["user_top_item_raw"][1:] - 1
    return {
        "scores of TI-DiffRec": gap(scores.roll(1, dims=1), names["diff_matrix"][1:]),
        "safe negatives that differ": float(sum(len(a ^ b) for a, b in zip(bands, theirs, strict=True))),
        "candidates that differ": float(top.sum()),
    }


def aligned(ours: PDRec, values: NDArray[np.int64]) -> Tensor:
    """(users + 1, LENGTH) a value for each interaction, those of the latest targets on the right, from 1; else 0."""
    histories, found = ours.backbone_histories, torch.zeros(USERS + 1, LENGTH, dtype=torch.int64)
    for user in range(USERS):
        # The first interaction is the target of nothing, and the last is the open end.
        own = values[histories.offsets[user] + 1 : histories.offsets[user + 1] - 1][-LENGTH:]
        found[user + 1, LENGTH - len(own) :] = torch.from_numpy(own) + 1
    return found


def train_backbone(names: dict[str, Any], folder: Path, ours: PDRec, epoch: Epoch) -> list[float]:
    """Let the released loop train GRU4Rec on our users and negatives; the losses of its steps."""
    losses, items = [], ours.backbone_histories.items.astype(np.int64)
    before = aligned(ours, np.concatenate(([0], items[:-1])))
    target, drawn, safe = aligned(ours, items), *(aligned(ours, x) for x in ours.negatives.numpy().T)
    names |= {"model": names["model_gru"].train(), "bce_criterion": nn.BCEWithLogitsLoss(reduction="none")}
    names |= {"user_nearest_item": safe.int(), "loss_epoch": 0.0, "loss_weight_epoch": 0.0}
    names["args"].lr = ours.config.learning_rate
    run(names, folder, "PDRec.py", "optimizer")
    for batch in epoch.batches:
        ends = batch.targets == ours.num_items
        users = ours.owners[batch.interactions[ends]].numpy() + 1
        rows = np.zeros((len(users), 1))
        numbers = (users, None, None, before[users].numpy(), target[users].numpy(), drawn[users].numpy()[:, None])
        names["sampler"] = SimpleNamespace(next_batch=lambda x=(*numbers, *[None] * 4, rows, None, None, rows): x)
        run(names, folder, "PDRec.py", "step")
        losses.append(names["loss"].item())
    return losses


if __name__ == "__main__":
    main()
