"""Kill training runs at random moments, resume them, and compare them with a run that was not killed.

    python -m benchmarks.faults.kills

Moments are drawn from a seed: by the clock, anywhere between start and end, and at each place in the code in turn:
before a step, after the optimizer has changed the weights, in an evaluation, before, within and after a write and a
rename, while the run folder is being finished. Checkpoints are saved after every step, and a resumed run may be killed
again. After each run its weights are compared byte for byte, and its log line by line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.dying import start, tally

import rediffuse as rd
from rediffuse.files import is_leftover
from rediffuse.testing import synthetic_interactions

SMALL = {"batch_size": 64, "precision": "fp32"}
DIFFUREC = {"embedding_size": 16, "blocks": 1, "epochs": 5, "timestep_sampler": "lossaware", "diffusion_steps": 4}
PDREC = {
    **{"epochs": 2, "candidates": 5, "liked": 2, "backbone_options": {"embedding_size": 16, "dropout": 0.0}},
    "diffusion": {"epochs": 4, "hidden_sizes": [16], "validate_every": 1, "batch_size": 32, "learning_rate": 0.2},
}
DIFFKG = {"embedding_size": 16, "epochs": 3, "denoiser_batch": 32, "hidden_size": 8, "rebuild_k": 1}
# Model, data, options, kills.
CASES = [("diffurec", {}, DIFFUREC, 30), ("pdrec", {}, PDREC, 10), ("diffkg", {"knowledge": True}, DIFFKG, 10)]
MAX_KILLS = 2  # of one run
CLOCK = "the clock"


def outcome(run: Path) -> dict[str, Any]:
    """Read what must not depend on kills."""
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rd.Recommender.load(run)  # every checksum
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "log": [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
        "validation": config["validation"],
        "best_epoch": config["training"]["best_epoch"],
        "leftovers": [str(path) for path in run.rglob("*") if is_leftover(path)],
    }


def attack(
    model: str, data: dict[str, Any], options: dict[str, Any], kills: int, seed: int, root: Path
) -> Counter[str]:
    """Kill and resume until ``kills`` processes have died; count them by place."""
    split, chance = rd.split.leave_one_out(synthetic_interactions(**data)), random.Random(seed)
    arguments: dict[str, Any] = {"config": SMALL | options, "seed": 3}
    for function, folder in ((rd.train, root / "alone"), (tally, root / "counted")):  # the first warms up the server
        first = (model,) if function is rd.train else (root / "calls.json", rd.train, model)
        began = time.monotonic()
        process = start({}, function, *first, split, folder, **arguments)
        process.join()
        seconds = time.monotonic() - began
        assert process.exitcode == 0
    calls = {place: count for place, count in json.loads((root / "calls.json").read_text()).items() if count}
    expected, happened = outcome(root / "alone"), Counter[str]()
    places = chance.sample(sorted(calls), len(calls))
    moments = itertools.cycle([moment for place in places for moment in (place, CLOCK)])
    while sum(happened.values()) < kills:
        folder = root / f"killed-{sum(happened.values())}"
        story: list[str] = []
        for _ in range(chance.randint(1, MAX_KILLS)):
            place = next(moments)
            death = {} if place == CLOCK else {place: chance.randrange(calls[place])}
            process = start(death, rd.train, model, split, folder, resume=_begun(folder), **arguments)
            if not death:
                process.join(chance.uniform(0, seconds))
                process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                happened[place] += 1
                story.append(f"{place} {death.get(place, '')}".strip())
            else:  # it ended before the kill
                assert process.exitcode == 0, f"{model}, after {story}: ended with {process.exitcode}"
        process = start({}, rd.train, model, split, folder, resume=_begun(folder), **arguments)
        process.join()
        assert process.exitcode == 0, f"{model}, after {story}: cannot be resumed"
        found = outcome(folder)
        wrong = [name for name in expected if found[name] != expected[name]]
        assert not wrong, f"{model}, after {story}: {', '.join(wrong)} differ"
        print(f"{model}: same after {', '.join(story) or 'no kill'}", flush=True)
    return happened


def _begun(folder: Path) -> bool:
    return (folder / "checkpoints" / "identity.safetensors").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, help="per model; default: 30 for diffurec, 10 for the others")
    parser.add_argument("--model", choices=[case[0] for case in CASES], help="this one only")
    arguments = parser.parse_args()
    for model, data, options, kills in CASES:
        if arguments.model in (None, model):
            with tempfile.TemporaryDirectory() as root:
                happened = attack(model, data, options, arguments.kills or kills, arguments.seed, Path(root))
            counts = ", ".join(f"{count} at {place}" for place, count in happened.most_common())
            total = sum(happened.values())
            print(
                f"{model}: {total} of {total} kills ended in the weights of an undisturbed run ({counts})",
                flush=True,
            )


if __name__ == "__main__":
    main()
