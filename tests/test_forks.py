"""A process that is forked after use gets an error instead of waiting for ever; spawned ones work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import rediffuse as rd
from rediffuse.testing import synthetic_interactions

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# The parent uses `loaded`; then each child does one thing, and must end within seconds.
SCRIPT = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import rediffuse as rd

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            print(work(), flush=True)
        except rd.errors.RunError as error:
            print("REFUSED", error.problem, error.remedy, flush=True)
        os._exit(0)
    until = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            print("HANGS", flush=True)
            return
        time.sleep(0.01)

if __name__ == "__main__":
    run = sys.argv[1]
    child(lambda: len(rd.Recommender.load(run).recommend(users=["u1"], k=3)))
    loaded = rd.Recommender.load(run)
    print(len(loaded.recommend(users=["u1"], k=3)), flush=True)
    for work in (
        lambda: loaded.recommend(users=["u1"], k=3),
        lambda: loaded.recommend(histories=[["i1"]], k=3),
        lambda: loaded.similar(["i1"]),
        lambda: rd.Recommender.load(run),
        lambda: rd.train("popularity", "none", run + "-other"),
    ):
        child(work)
    print(len(loaded.recommend(users=["u1"], k=3)), flush=True)
    import multiprocessing
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        print(len(pool.apply(loaded.recommend, (["u1"],), {"k": 3})), flush=True)
"""


def test_forked_children_are_refused_and_spawned_ones_work(tmp_path):
    run = rd.train("itemknn", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run").path
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, script, run], capture_output=True, text=True, timeout=200, env=environment)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["3", "3"], done.stderr  # a fork before the first use is no problem
    assert [line.split()[0] for line in lines[2:7]] == ["REFUSED"] * 5, done.stdout
    assert "had used Rediffuse already" in lines[2]
    assert "spawn" in lines[2]
    assert lines[7:] == ["3", "3"], done.stderr
