"""What training says, callbacks, Ctrl+C, and estimates."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rediffuse as rd
from rediffuse.errors import ConfigError
from rediffuse.testing import synthetic_interactions
from rediffuse.training import TrainingEvent, estimate, progress

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "blocks": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "mine"
    synthetic_interactions().save(folder)
    return folder


def command(*arguments: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rediffuse", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


SETTINGS = [part for name, value in TINY.items() if name != "epochs" for part in ("--set", f"{name}={value}")]


def test_one_line_per_validation_and_why_it_stopped(split, tmp_path, caplog):
    caplog.set_level(logging.INFO, "rediffuse.training")
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY)
    lines = [record.message for record in caplog.records if record.name == "rediffuse.training"]
    assert len(lines) == 4
    for epoch, line in enumerate(lines[:3], 1):
        assert re.match(
            rf"epoch {epoch}/3  loss \d+\.\d{{4}}  ndcg@10 0\.\d{{4}}  best 0\.\d{{4}} \(epoch \d\)  ", line
        )
    assert "at most" in lines[0]
    assert "left" not in lines[2]
    assert lines[3] == run.config["training"]["stopped"]
    assert lines[3].startswith("Training stopped: all 3 epochs are done; best at epoch")
    stored = json.loads((run.path / "config.json").read_text())["training"]["stopped"]
    assert stored == lines[3]


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_each_reason_to_stop_is_named(split, tmp_path):
    config = TINY | {"epochs": 60, "patience": 2, "learning_rate": 0.05}
    patient = rd.train("sasrec", split, tmp_path / "patience", config=config)
    assert "no improvement for 2 validations; best at epoch" in patient.config["training"]["stopped"]
    late = rd.train("sasrec", split, tmp_path / "late", config=TINY, max_minutes=0.0)
    assert "the time limit of 0.0 s was reached in epoch 1." in late.config["training"]["stopped"]
    closed = rd.train("popularity", split, tmp_path / "closed")
    assert closed.config["training"]["stopped"] is None


@pytest.mark.parametrize("shown", [True, False])
def test_lines_go_to_stderr_where_there_is_no_terminal(tmp_path, shown):
    code = f"""
import rediffuse as rd
from rediffuse.testing import synthetic_interactions
split = rd.split.leave_one_out(synthetic_interactions())
rd.train("sasrec", split, {str(tmp_path / "run")!r}, config={TINY}, progress={shown})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    starts = [line[:6] for line in done.stderr.splitlines()]
    assert starts == (["epoch "] * 3 + ["Traini"] if shown else [])
    assert done.stdout == ""


def test_the_time_left_respects_limit_and_patience():
    pace = progress.Pace(epochs=100, done=0, patience=10, started=time.monotonic() - 20)
    most, without = pace.left(10, 4, float("inf"))
    assert most == pytest.approx(180, rel=0.01)
    assert without == pytest.approx(12, rel=0.01)
    most, without = pace.left(10, -float("inf"), 60.0)
    assert (most, without) == (60.0, 60.0)
    assert progress.left_in_words((180.0, 12.0)) == "at most 3 min left (12 s without improvement)"
    assert progress.left_in_words((60.0, 60.0)) == "at most 60 s left"


@pytest.mark.slow
def test_a_notebook_shows_a_bar_without_ipywidgets(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    code = f"""
import sys, warnings
warnings.simplefilter("error")
sys.modules["ipywidgets"] = None  # an import fails
import rediffuse as rd
from rediffuse.testing import synthetic_interactions
run = rd.train("sasrec", rd.split.leave_one_out(synthetic_interactions()), {str(tmp_path / "run")!r}, config={TINY},
               progress=True)
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=60).execute()
    outputs = book.cells[0].outputs
    bars = [output["data"]["text/plain"] for output in outputs if output["output_type"] == "display_data"]
    assert len(bars) == 1
    assert "█" * progress.BAR_WIDTH in bars[0]
    assert "epoch 3/3" in bars[0]
    said = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert said.startswith("Training stopped: all 3 epochs")
    assert "ipywidgets" not in said


def test_ctrl_c_saves_says_how_to_resume_and_resumes_exactly(dataset, tmp_path):
    run = tmp_path / "my run"
    arguments = ["train", "sasrec", dataset, "-o", run, "--split", "leave-one-out", "--set", "epochs=20", *SETTINGS]
    arguments += ["--set", "patience=20"]
    process = command(*arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    said = process.stderr.read()
    assert process.wait() == 130
    assert "a checkpoint is saved" in said
    assert "Traceback" not in said
    (resume,) = re.findall(r"Continue with:\n  (rediffuse train .* --resume)\n", said)
    assert f"'{run}'" in resume
    assert not (run / "config.json").exists()
    subprocess.run(
        resume.replace("rediffuse", f"{sys.executable} -m rediffuse", 1), shell=True, check=True, capture_output=True
    )
    undisturbed = command(*[tmp_path / "other" if argument == run else argument for argument in arguments])
    undisturbed.communicate()
    left, right = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "other"))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_ctrl_c_in_python_is_a_keyboard_interrupt_with_a_checkpoint(split, tmp_path):
    class Press:
        def on_step(self, event):
            if event.epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"in epoch 2\. The checkpoint is saved: continue with resume=True"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, callbacks=[Press()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = rd.train("sasrec", split, tmp_path / "run", config=TINY, resume=True)
    whole = rd.train("sasrec", split, tmp_path / "whole", config=TINY)
    left, right = (load_file(run.path / "model.safetensors") for run in (again, whole))
    assert all(torch.equal(left[name], right[name]) for name in right)


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, TrainingEvent]] = []

    def on_step(self, event: TrainingEvent) -> None:
        self.events.append(("step", event))

    def on_validation(self, event: TrainingEvent) -> None:
        self.events.append(("validation", event))

    def on_end(self, event: TrainingEvent) -> None:
        self.events.append(("end", event))


def test_callbacks_get_what_the_log_has(split, tmp_path):
    recorder = Recorder()
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, callbacks=[recorder])
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [event for kind, event in recorder.events if kind == "step"]
    assert [(event.epoch, event.step) for event in steps] == [
        (line["epoch"], step + 1) for line in log for step in range(line["steps"])
    ]
    first = [event.loss for event in steps if event.epoch == 1]
    assert sum(first) / len(first) == pytest.approx(log[0]["loss"])
    validations = [event for kind, event in recorder.events if kind == "validation"]
    assert [(event.epoch, event.loss, event.metrics) for event in validations] == [
        (line["epoch"], line["loss"], line["validation"]) for line in log
    ]
    kind, end = recorder.events[-1]
    assert kind == "end"
    assert end.stopped == run.config["training"]["stopped"]
    assert end.best == max(line["validation"]["ndcg@10"] for line in log)


@pytest.mark.parametrize("method", ["on_step", "on_validation", "on_end"])
def test_an_exception_of_a_callback_ends_training_with_a_checkpoint(split, tmp_path, method):
    class Fails:
        pass

    def fail(self, event):
        if event.epoch == 2 or method == "on_end":
            raise ZeroDivisionError("mine")

    setattr(Fails, method, fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, callbacks=[Fails()])
    again = rd.train("sasrec", split, tmp_path / "run", config=TINY, resume=True)
    whole = rd.train("sasrec", split, tmp_path / "whole", config=TINY)
    assert again.validation == whole.validation


class NoArguments:
    def on_step(self):
        pass


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([print], "none of the methods on_step, on_validation, on_end"),
        ([Recorder], r"the class Recorder.*[\s\S]*Recorder\(\)"),
        ([NoArguments()], "cannot be called with one argument"),
        (Recorder(), "not a list"),
    ],
)
def test_wrong_callbacks_are_refused_before_training(split, tmp_path, callbacks, message):
    with pytest.raises(ConfigError, match=message):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_an_estimate_writes_nothing_and_is_near_the_truth(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    found = estimate("sasrec", split, config=TINY | {"accumulate": 2, "ema": 0.9})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not list(tmp_path.iterdir())
    (phase,) = found.phases
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY)
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert phase.steps == log[0]["steps"]
    assert phase.epochs == 3
    fastest = min(line["seconds"] for line in log)
    assert fastest / 20 < phase.epoch_seconds < fastest * 20  # the machine is shared
    assert found.most_seconds >= 3 * phase.epoch_seconds
    assert estimate("sasrec", split, config=TINY, max_minutes=0.0001).most_seconds <= 0.006
    assert not estimate("popularity", split).phases


@pytest.mark.slow
def test_dry_run_and_doctor(dataset, tmp_path):
    folder = tmp_path / "run"
    dry = command("train", "s3rec", dataset, "-o", folder, "--split", "leave-one-out", *SETTINGS, "--dry-run")
    out, _ = dry.communicate()
    assert dry.returncode == 0
    assert "an epoch of pretrain takes about" in out
    assert "MiB of memory" in out
    assert not folder.exists()
    doctor = command("doctor", "--data", dataset, "--model", "sasrec", "--json")
    found = json.loads(doctor.communicate()[0])["estimates"]
    assert [entry["model"] for entry in found] == ["sasrec"]
    assert found[0]["phases"][0]["epoch_seconds"] > 0
