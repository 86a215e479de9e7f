"""Check PDRec against its released code: same weights, histories and negatives must give the same numbers.

    git clone https://github.com/hulkima/PDRec
    python -m benchmarks.parity.pdrec --released PDRec

Compares TI-DiffRec's scores, the three signals that they give, the loss of a backbone and its gradients. Prints the
largest relative differences, and fails above 1e-4. The released code is read from its own folder; none of it is copied
here. Signals and loss are part of its script, which cannot be imported: the two loops are cut out of it by their syntax
and run on these inputs, on a CPU.

The released program takes validation and test items out of the negatives, and the score of its padding into the floor
of the weights. Here there are no such items, and the padding has a high score. The backbone is ours in both.
"""

from __future__ import annotations

import ast
import copy as deep
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity.released import add_folder, copy, finish, gap, gradient_gap, load, module, stay_on_cpu
from rediffuse.batching.sequences import SequenceBatch
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.pdrec import PDRec

USERS, ITEMS, HIDDEN, LENGTH, DAY = 12, 60, 16, 15, 86_400
OPTIONS = {
    **{
        "rank_share": 0.3,
        "largest": 1.4,
        "scale": 2.0,
        "band_from": 40.0,
        "band_to": 70.0,
        "candidates": 12,
        "liked": 3,
    },
    **{"positive_weight": 0.3, "batch_size": 10_000},
    "backbone_options": {"embedding_size": 8, "dropout": 0.0, "max_length": LENGTH, "temperature": 0.2},
    "diffusion": {"hidden_sizes": (HIDDEN,), "dropout": 0.0, "weighting": "interval", "weight_min": 0.3}
    | {"diffusion_steps": 10, "noise_scale": 0.01, "noise_min": 5e-4, "noise_max": 0.01},
}


def main() -> None:
    folder = add_folder(__doc__, "PDRec.py")
    stay_on_cpu()
    for name in ("ipdb", "dill"):
        sys.modules.setdefault(name, module(name))
    metrics = module("sklearn.metrics", roc_auc_score=None)
    sys.modules.setdefault("sklearn", module("sklearn", metrics=metrics))
    sys.modules.setdefault("sklearn.metrics", metrics)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lists = [rng.permutation(ITEMS)[: rng.integers(2, LENGTH)].tolist() for _ in range(USERS)]
    times = np.concatenate([np.sort(rng.integers(10_000, 15_000, len(items))) * DAY for items in lists])
    times[: len(lists[0])] = DAY  # a user whose interactions are all at one time
    histories = Histories.from_lists(lists)
    histories = Histories(histories.offsets, histories.items, times)
    popularity = np.bincount(histories.items, minlength=ITEMS)
    data = TrainingData(histories, USERS, ITEMS, popularity, has_timestamps=True)
    ours = PDRec(PDRec.Config.build("released", OPTIONS), ITEMS, USERS).eval()
    ours.fit(data)
    assert ours.diffusion is not None
    # Scores that are far apart, so that rounding does not change a ranking.
    nn.init.normal_(ours.diffusion.denoiser.last.bias)
    ours.begin_phase("backbone", data)
    names = released_names(folder, ours, histories)
    found = compare_signals(names, ours, histories)
    finish(found | compare_loss(names, ours, data, rng))


def loops(folder: Path) -> dict[str, list[ast.stmt]]:
    """The loop over users that makes the signals, and the body of the loop over batches up to the gradient."""
    tree = ast.parse((folder / "PDRec.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "cuda":
            node.value = "cpu"
    found = {"functions": [node for node in tree.body if isinstance(node, ast.FunctionDef)]}
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            if node.target.id == "u" and "p_sample" in ast.dump(node):
                found["signals"] = [node]
            elif node.target.id == "step":
                ends = [place for place, line in enumerate(node.body) if ast.unparse(line) == "loss.backward()"]
                found["loss"] = node.body[: ends[0]]
    return found


def run(names: dict[str, Any], part: str) -> None:
    """Execute a part of the released program, in ``names``."""
    body = ast.Module(body=names["parts"][part], type_ignores=[])
    exec(compile(ast.fix_missing_locations(body), f"PDRec.py ({part})", "exec"), names)


def released_names(folder: Path, ours: PDRec, histories: Histories) -> dict[str, Any]:
    """What the released program knows when it makes the signals. There users and items count from 1."""
    config, utils = ours.config, load("utils.utils")
    diffusion, network = released_diffusion(ours)
    first, last = (math.floor(ITEMS * config.band_from / 100), math.ceil(ITEMS * config.band_to / 100))
    items = {u + 1: (histories.row(u) + 1).tolist() for u in range(USERS)}
    assert histories.times is not None
    times = {u + 1: histories.times[histories.offsets[u] : histories.offsets[u + 1]].tolist() for u in range(USERS)}
    args = SimpleNamespace(
        w_min=ours.config.diffusion["weight_min"],
        w_max=1.0,
        reweight_version="AllOne",
        sampling_steps=0,
        sampling_noise=False,
        top_candidate_coarse_num=config.candidates,
        top_candidate_fine_num=config.liked,
        top_candidate_weight=config.positive_weight,
        rank_weight=config.rank_share,
        scale_max=config.largest,
        scale_weight=config.scale,
        maxlen=LENGTH,
    )
    names: dict[str, Any] = {"parts": loops(folder), "args": args, "torch": torch, "np": np, "copy": deep}
    names |= {name: getattr(utils, name) for name in ("scale_withminmax", "del_tensor_ele")}
    names |= {"diffusion": diffusion, "model_diff": network, "usernum": USERS, "itemnum": ITEMS}
    names |= {"user_train_mix": items, "user_train_source": items, "user_train_target": items}
    names |= {"user_train_ti_target": times}
    names["user_valid_target"] = names["user_test_target"] = {u: [] for u in items}
    names |= {"random_min": 1, "random_max": ITEMS + 1, "item_list": torch.arange(1, ITEMS + 1)}
    names |= {"candidate_min_user": first, "candidate_max_user": last}
    names["user_nearest_item_raw"] = torch.zeros(USERS + 1, last - first, dtype=torch.int32)
    names["user_top_item_raw"] = torch.zeros(USERS + 1, config.candidates, dtype=torch.int32)
    names["diff_matrix"], names["weight_matrix"] = (torch.zeros(USERS + 1, ITEMS + 1) for _ in range(2))
    run(names, "functions")
    return names


def released_diffusion(ours: PDRec) -> tuple[Any, Any]:
    """The released TI-DiffRec with our weights. Its padding reads nothing and has a high score."""
    assert ours.diffusion is not None
    config, mine = ours.diffusion.config, ours.diffusion.denoiser
    dnn, process = load("models.DNN"), load("models.gaussian_diffusion")
    levels = (config.noise_scale, config.noise_min, config.noise_max, config.diffusion_steps)
    diffusion = process.GaussianDiffusion(process.ModelMeanType.START_X, "linear-var", *levels, torch.device("cpu"))
    network = dnn.DNN([ITEMS + 1, HIDDEN], [HIDDEN, ITEMS + 1], config.time_size, dropout=0.0).eval()
    nothing, first, last = torch.zeros(1, HIDDEN), network.in_layers[0], network.out_layers[0]
    copy(first.weight, torch.cat((nothing.T, mine.first.T, mine.first_time.weight), dim=1))
    for their, weight in (
        (first.bias, mine.first_time.bias),
        (network.emb_layer.weight, mine.time.weight),
        (network.emb_layer.bias, mine.time.bias),
        (last.weight, torch.cat((nothing, mine.last.weight))),
        (last.bias, torch.cat((torch.tensor([100.0]), mine.last.bias))),
    ):
        copy(their, weight)
    return diffusion, network


def compare_signals(names: dict[str, Any], ours: PDRec, histories: Histories) -> dict[str, float]:
    with torch.no_grad():
        run(names, "signals")
    assert ours.diffusion is not None
    assert ours.signals is not None
    scores, signals = ours.diffusion.score(histories), ours.signals
    bands = [set(np.flatnonzero(np.unpackbits(row, count=ITEMS, bitorder="little")) + 1) for row in signals.bands]
    theirs = [set(row.tolist()) for row in names["user_nearest_item_raw"][1:]]
    top = torch.from_numpy(signals.positives) != names["user_top_item_raw"][1:] - 1
    return {
        "scores of TI-DiffRec": gap(scores, names["diff_matrix"][1:, 1:]),
        "safe negatives that differ": float(sum(len(a ^ b) for a, b in zip(bands, theirs, strict=True))),
        "candidates that differ": float(top.sum()),
    }


def compare_loss(names: dict[str, Any], ours: PDRec, data: TrainingData, rng: np.random.Generator) -> dict[str, float]:
    batches = ours.batches(data, rng)
    batch: Any = batches.get(0)
    assert len(batches) == 1
    assert isinstance(batch, SequenceBatch)
    histories, owners = ours.backbone_histories, ours.owners[batch.interactions]
    places = torch.from_numpy(histories.positions)[batch.interactions]  # of targets, from 1
    length = torch.from_numpy(data.train.lengths)[owners]
    known = batch.targets < ITEMS
    column = LENGTH - length + places  # right-aligned; an open end comes after the last

    shape = (USERS, LENGTH)
    sequence, target, drawn, safe = (torch.zeros(shape, dtype=torch.int64) for _ in range(4))
    for u in range(USERS):
        items = torch.from_numpy(data.train.row(u).astype(np.int64)) + 1
        sequence[u, LENGTH - len(items) + 1 :], target[u, LENGTH - len(items) + 1 :] = items[:-1], items[1:]
    negatives = ours.negatives[batch.interactions] + 1
    drawn[owners[known], column[known]] = negatives[known, 0]
    safe[owners[known], column[known]] = negatives[known, 1]
    names["user_nearest_item"] = torch.cat((torch.zeros(1, LENGTH, dtype=torch.int64), safe)).int()

    hidden = ours.backbone.encode(batch).vectors
    states = torch.zeros(*shape, hidden.shape[1]).index_put((owners[known], column[known]), hidden[known])
    ends = torch.zeros(USERS, hidden.shape[1]).index_put((owners[~known],), hidden[~known])

    def model(_: Any, seq: Tensor, pos: Tensor, negs: list[Tensor], seq_all: Tensor, soft: Tensor) -> Any:
        """Our backbone, in the place of the released one."""
        space, table = ours.backbone.metric_space, ours.backbone.metric_space(ours.backbone.catalogue())
        table = torch.cat((torch.zeros(1, table.shape[1]), table))  # 0 is the padding
        vectors = space(states)
        logits = [(vectors * table[items.long()]).sum(-1) for items in (pos, *negs)]
        return logits[0], logits[1:], torch.einsum("ud,ucd->uc", space(ends), table[soft.long()])

    rows = np.zeros((USERS, ITEMS + 1), dtype=np.float32)
    numbers = (np.arange(1, USERS + 1), None, None, sequence.numpy(), target.numpy(), drawn.numpy()[:, None])
    names["sampler"] = SimpleNamespace(next_batch=lambda: (*numbers, None, None, None, None, rows, None, None, rows))
    names |= {"model": model, "bce_criterion": nn.BCEWithLogitsLoss(reduction="none"), "loss_epoch": 0.0}
    names |= {"adam_optimizer": SimpleNamespace(zero_grad=lambda: None), "loss_weight_epoch": 0.0}
    run(names, "loss")

    weights = torch.zeros(shape)
    weights[owners[known], column[known]] = ours.interaction_weights[batch.interactions][known]
    loss = ours.loss(batch)
    parameters = [x for name, x in ours.backbone.named_parameters() if name != "repeat"]  # of the softmax alone
    theirs, mine = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (names["loss"], loss))
    return {
        "weights of interactions": gap(weights[target > 0], names["loss_reweight"]),
        "loss": gap(loss, names["loss"]),
        "gradients": gradient_gap(mine, theirs),
    }


if __name__ == "__main__":
    main()
