"""Check DiffRec against its released code: same weights, rows and noise must give the same numbers.

    git clone https://github.com/YiyanXu/DiffRec
    python -m benchmarks.parity.diffrec --released DiffRec/DiffRec/models

Prints the largest relative differences, and fails above 1e-4. The released code is imported from its own folder; none
of it is copied here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rediffuse.batching.rows import row_batch
from rediffuse.data.histories import Histories
from rediffuse.models.diffrec import DiffRec
from rediffuse.models.sampling import Sampling

ITEMS, USERS, TOLERANCE = 120, 32, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, required=True, help="folder with the released DNN.py")
    sys.path.insert(0, str(parser.parse_args().released))
    worst = 0.0
    for preset in DiffRec.Config.presets:
        for prediction in ("x0", "eps"):
            found = compare(preset, prediction)
            worst = max(worst, *found.values())
            print(f"{preset}, predicts {prediction}: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    if worst > TOLERANCE:
        raise SystemExit(f"The largest difference is {worst:.1e}, above {TOLERANCE:g}.")


def compare(preset: str, prediction: str) -> dict[str, float]:
    """Return the largest relative differences of one configuration."""
    torch.manual_seed(0)
    ours = DiffRec(DiffRec.Config.build(preset, {"prediction": prediction, "dropout": 0.0}), ITEMS).eval()
    diffusion, theirs = released(ours)
    rng = np.random.default_rng(0)
    rows = Histories.from_lists([rng.permutation(ITEMS)[: rng.integers(1, 30)].tolist() for _ in range(USERS)])
    x_0 = torch.from_numpy(ours.rows(rows).toarray())
    found: dict[str, float] = {}
    with torch.no_grad():
        steps = ours.config.diffusion_steps
        t = torch.arange(USERS) % steps
        found["network"] = gap(ours.denoiser(x_0, t), theirs(x_0, t))
        ours.prepare()
        found["chain"] = gap(ours.score_known(rows, np.full(USERS, -1), Sampling()), diffusion.p_sample(theirs, x_0, 0))

        # Training steps with the same timesteps and noise; then the timestep probabilities that their losses give.
        noise = torch.randn(USERS, ITEMS)
        probability = torch.rand(USERS, dtype=torch.float64) + 0.5
        diffusion.sample_timesteps = lambda *_: (t, probability)
        ours.timesteps.sample = lambda *_, **__: (t, (1 / probability).float())
        torch.randn_like = lambda _: noise  # type: ignore[assignment]
        for _ in range(12):
            loss_theirs = diffusion.training_losses(theirs, x_0, reweight=True)["loss"].mean()
            loss = ours.loss(row_batch(ours.rows(rows)))
        found["loss"] = gap(loss, loss_theirs)
        if bool((ours.timesteps.counts == 10).all()):
            root = diffusion.Lt_history.square().mean(-1).sqrt()
            found["timestep probabilities"] = gap(
                ours.timesteps.probabilities(), 0.999 * root / root.sum() + 0.001 / steps
            )
    return found


def released(ours: DiffRec) -> tuple[Any, Any]:
    """Build the released diffusion process and network, with our weights."""
    config = ours.config
    dnn, process = (importlib.import_module(name) for name in ("DNN", "gaussian_diffusion"))
    kinds = process.ModelMeanType
    diffusion = process.GaussianDiffusion(
        kinds.START_X if config.prediction == "x0" else kinds.EPSILON,
        "linear-var",
        config.noise_scale,
        config.noise_min,
        config.noise_max,
        config.diffusion_steps,
        torch.device("cpu"),
        beta_fixed=config.beta_fixed,
    )
    widths = [*config.hidden_sizes, ITEMS]
    net = dnn.DNN(widths[::-1], widths, config.time_size, dropout=0.0).eval()
    mine = ours.denoiser
    inner = [*net.in_layers[1:], *net.out_layers[:-1]]
    with torch.no_grad():
        net.in_layers[0].weight.copy_(torch.cat((mine.first.T, mine.first_time.weight), dim=1))
        net.in_layers[0].bias.copy_(mine.first_time.bias)
        pairs = [(net.emb_layer, mine.time), (net.out_layers[-1], mine.last), *zip(inner, mine.between, strict=True)]
        for theirs, layer in pairs:
            theirs.weight.copy_(layer.weight)
            theirs.bias.copy_(layer.bias)
    return diffusion, net


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    main()
