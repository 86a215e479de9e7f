"""Small runs of models, asked on the CPU and on the fake device. A program, since the device stays in its process.

    python -m tests.on_fake_device FOLDER NAME...

It trains each model, then prints one JSON object: name -> question -> what is wrong with the answer, if anything is;
and check -> "" or its traceback, of `CHECKS`, which need the models sasrec, colddiff and theat.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse import cli, devices
from rediffuse.diffusion import noise
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.recommender.index_building import build_index
from rediffuse.serving.app import create_app
from tests import fake_device
from tests.contracts.test_models import TINY, small

Runs = dict[str, tuple[Path, rd.Dataset]]  # by the name of the model
BLEND = "blend"
QUESTIONS: dict[str, Callable[[rd.Recommender, list[Any], list[Any]], pl.DataFrame]] = {
    "users": lambda r, users, items: r.recommend(users=users, k=7, seed=3),
    "histories": lambda r, users, items: r.recommend(
        histories=[items[:3], [items[5]] * 4, []], k=7, filter_seen=False, exclude=items[:2], candidates=items[:30]
    ),
    "samples": lambda r, users, items: r.recommend(users=users[:5], k=7, samples=3),
    "reranked": lambda r, users, items: r.recommend(users=users[:5], k=5, diversity=0.5),
    "reasons": lambda r, users, items: r.recommend(users=users[:5], k=5, explain=True).drop("because"),
    "similar": lambda r, users, items: r.similar(items[:4], k=5),
    "denoise": lambda r, users, items: r.denoise(user=users[1]),
    "spread": lambda r, users, items: r.spread(user=users[1]),
    "explain": lambda r, users, items: r.explain(items[:3], user=users[1]),
}


def main(folder: Path, names: list[str]) -> dict[str, dict[str, str]]:
    warnings.simplefilter("ignore", RediffuseWarning)
    TINY.update(epochs=1, generator_epochs=1, pretrain_epochs=1)
    fake_device.register()
    noise.NO_FLOAT64.add(fake_device.NAME)  # as on MPS
    fake_device.present = False  # while the runs are trained
    runs: Runs = {}
    for name in names:
        if name == BLEND:
            parts = [small(part, folder / BLEND / part) for part in ("gru4rec", "transition")]
            data = parts[0].split.dataset
            run = rd.blend([part.run for part in parts], data, folder / BLEND / "run")
        else:
            trained = small(name, folder / name)
            run, data = trained.run, trained.split.dataset
        runs[name] = run.path, data
    fake_device.present = True
    return {
        **{name: wrong_answers(*run) for name, run in runs.items()},
        **{check.__name__: outcome(check, runs) for check in CHECKS},
    }


def outcome(check: Callable[[Runs], None], runs: Runs) -> str:
    try:
        check(runs)
    except Exception:
        return traceback.format_exc(limit=-4)
    return ""


def wrong_answers(run: Path, data: rd.Dataset) -> dict[str, str]:
    """Question -> what is wrong with its answer on the device."""
    on_cpu, on_device = (rd.Recommender.load(run, device=device) for device in ("cpu", fake_device.NAME))
    users, items = on_cpu.user_ids.to_list(), on_cpu.items["item_id"].to_list()
    wrong = {}
    for name, question in QUESTIONS.items():
        try:
            expected = question(on_cpu, users, items)
        except ConfigError:  # not every model answers every question
            continue
        fake_device.elements_to_cpu.clear()
        try:
            found = question(on_device, users, items)
        except Exception:
            wrong[name] = traceback.format_exc(limit=-4)
            continue
        if difference := compared(expected, found):
            wrong[name] = difference
        most = len(users) * max(7, 1 + len(items) // 4)
        if name == "users" and max(fake_device.elements_to_cpu, default=0) > most:
            wrong["moved"] = f"{max(fake_device.elements_to_cpu)} numbers were moved to the CPU at once"
    try:
        expected, found = (rd.evaluate(run, data, device=device) for device in ("cpu", fake_device.NAME))
    except Exception:
        wrong["evaluate"] = traceback.format_exc(limit=-4)
    else:
        if expected["metrics"] != found["metrics"]:
            wrong["evaluate"] = "other metrics"
        if (device := found["device"]) != str(on_device.device):
            wrong["device"] = f"evaluated on {device}"
    return wrong


def compared(expected: pl.DataFrame, found: pl.DataFrame) -> str:
    """How two answers differ, but for rounding; "" if they do not."""
    for column in expected.columns:
        left, right = expected[column], found[column]
        if not left.dtype.is_float():
            if not left.equals(right):
                return f"{column}: {left.to_list()[:8]} and {right.to_list()[:8]}"
        elif not np.allclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True):
            return f"{column} differs by {np.abs(left - right).max()} of {np.abs(left).max()}"
    return ""


# --- what else answers -------------------------------------------------------------------------------------


def a_model_that_computes_with_scipy_says_so(runs: Runs) -> None:
    run = runs["theat"][0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        named, auto = (rd.Recommender.load(run, device=device) for device in (fake_device.NAME, "auto"))
    assert [str(each.message) for each in caught] == [
        "theat computes with SciPy, on the CPU; the device fake:0 is not used."
    ]
    assert str(named.device) == str(auto.device) == "cpu"
    assert "cpu" in repr(named)


def auto_takes_the_accelerator(runs: Runs) -> None:
    assert str(devices.resolve("auto")) == "fake:0"
    assert devices.available() == ["cpu", "fake:0"]
    recommender = rd.Recommender.load(runs["sasrec"][0], device="auto")
    assert str(recommender.device) == str(recommender.model.device) == "fake:0"
    assert "fake:0" in repr(recommender)
    with pytest.raises(ConfigError, match="There is no device 'fake:1': torch finds cpu and fake:0"):
        devices.resolve("fake:1")


def the_command_line_and_part_files(runs: Runs) -> None:
    run, data = runs["sasrec"]
    pl.DataFrame({"user_id": data.user_ids}).write_parquet(run.parent / "users.parquet")
    found = {}
    for device in ("cpu", "auto"):
        arguments = ["--users", str(run.parent / "users.parquet"), "-k", "7", "--device", device]
        out, folder = run.parent / f"{device}.parquet", run.parent / f"lists-{device}"
        for where in (out, folder):
            result = CliRunner().invoke(cli.app, ["recommend", str(run), *arguments, "-o", str(where)])
            assert result.exit_code == 0, result.output
        found[device] = pl.read_parquet(out), pl.read_parquet(folder / "*.parquet").sort("user_id", "rank")
    for expected, on_device in zip(found["cpu"], found["auto"], strict=True):
        assert not compared(expected, on_device)


def an_index(runs: Runs) -> None:
    run, data = runs["sasrec"]
    answers = []
    for device in ("cpu", fake_device.NAME):
        report = build_index(run, k=5, device=device)
        recommender = rd.Recommender.load(run, retrieval="index", device=device)
        users = data.user_ids.to_list()
        answers.append((report["recall"], recommender.recommend(users=users, k=5)))
    assert answers[0][0] == answers[1][0]
    assert not compared(answers[0][1], answers[1][1])


def new_items(runs: Runs) -> None:
    run, data = runs["colddiff"]
    assert data.items is not None
    new = data.items.head(2).with_columns(item_id=pl.Series(["new-1", "new-2"]))
    answers = []
    for device in ("cpu", fake_device.NAME):
        recommender = rd.Recommender.load(run, device=device).with_items(new)
        answers.append(recommender.recommend(users=data.user_ids.to_list(), k=9, new_items=0.3))
    assert str(recommender.device) == "fake:0"
    assert not compared(*answers)


def the_service(runs: Runs) -> None:
    run, data = runs["sasrec"]
    users, items = data.user_ids.to_list(), data.item_ids.to_list()
    asked = {
        "/v1/recommend": {"users": users[:9], "k": 5, "explain": True},
        "/v1/similar": {"items": items[:3]},
    }
    answers = []
    for device in ("cpu", fake_device.NAME):
        with TestClient(create_app([run], device=device)) as client:
            described = client.get("/v1/models").json()["models"][0]
            assert described["device"] == ("cpu" if device == "cpu" else "fake:0")
            points = client.get(f"/v1/models/{run.name}/map").json()
            found = {path: client.post(path, json=content) for path, content in asked.items()}
            assert all(response.status_code == 200 for response in found.values()), found["/v1/recommend"].text
            answers.append(({path: response.json() for path, response in found.items()}, points))

    def items_of(answer: Any) -> list[str]:
        if isinstance(answer, dict):
            own = [answer["item_id"]] if "item_id" in answer else []
            return own + [item for value in answer.values() for item in items_of(value)]
        return [item for value in answer for item in items_of(value)] if isinstance(answer, list) else []

    assert len(items_of(list(answers[0]))) > 45, answers[0]
    assert items_of(list(answers[0])) == items_of(list(answers[1]))


def training(runs: Runs) -> None:
    data = runs["sasrec"][1]
    for model, options in (("sasrec", {}), ("diffurec", {}), ("bprmf", {"prior": "head"}), ("theat", None)):
        known = {} if options is None else {"epochs": 1, "embedding_size": 16, "precision": "fp32"} | options
        if model != "bprmf" and known:
            known |= {"dropout": 0.0, "blocks": 1}
        made = [
            rd.train(model, data, runs["sasrec"][0].parent / f"{model}-{device}", config=known, device=device)
            for device in ("cpu", "auto" if model == "theat" else fake_device.NAME)
        ]
        if model != "diffurec":  # whose noise in training is drawn on the device
            assert made[0].validation == pytest.approx(made[1].validation, abs=1e-3), model
        used = [run.config["training"]["device"] for run in made]
        assert used == ["cpu", "cpu" if model == "theat" else "fake:0"], used


def what_is_not_moved_is_an_error(runs: Runs) -> None:
    """Otherwise no answer of this program would say anything."""
    recommender = rd.Recommender.load(runs["sasrec"][0], device="auto")
    recommender.model.fallback = recommender.model.fallback.cpu()  # a buffer that stayed behind
    with pytest.raises(RuntimeError, match="same device"):
        recommender.recommend(histories=[[], ["i1"]])


CHECKS = (
    a_model_that_computes_with_scipy_says_so,
    auto_takes_the_accelerator,
    the_command_line_and_part_files,
    an_index,
    new_items,
    the_service,
    training,
    what_is_not_moved_is_an_error,
)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
