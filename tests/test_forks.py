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
    run, data = sys.argv[1:]
    child(lambda: len(rd.Recommender.load(run).recommend(users=["u1"], k=3)))
    loaded = rd.Recommender.load(run)
    print(len(loaded.recommend(users=["u1"], k=3)), flush=True)
    for work in (
        lambda: loaded.recommend(users=["u1"], k=3),
        lambda: loaded.recommend(histories=[["i1"]], k=3),
        lambda: loaded.similar(["i1"]),
        lambda: rd.Recommender.load(run),
        lambda: rd.train("popularity", "none", run + "-other"),
        lambda: rd.read_interactions(data),
        lambda: rd.evaluate_lists({"u1": ["i1"]}, {"u1": ["i1"]}),
    ):
        child(work)
    print(len(loaded.recommend(users=["u1"], k=3)), flush=True)
    import multiprocessing
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        print(len(pool.apply(loaded.recommend, (["u1"],), {"k": 3})), flush=True)
"""

# The first use is `first`; it needs no run.
READING = (
    SCRIPT.partition("if __name__")[0]
    + """
if __name__ == "__main__":
    data = sys.argv[1]
    first = (lambda: rd.read_interactions(data)) if sys.argv[2] == "table" else (
        lambda: rd.evaluate_lists({"u1": ["i1"]}, {"u1": ["i1"]})
    )
    first()
    child(lambda: rd.read_interactions(data))
"""
)


def write_table(folder):
    path = folder / "table.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{n % 97},i{n % 31}\n" for n in range(20_000)))
    return path


@pytest.mark.parametrize("first", ["table", "lists"])
def test_reading_a_table_is_use(tmp_path, first):
    script = tmp_path / "script.py"
    script.write_text(READING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, script, write_table(tmp_path), first],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.stdout.startswith("REFUSED"), done.stderr


def test_forked_children_are_refused_and_spawned_ones_work(tmp_path):
    run = rd.train("itemknn", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run").path
    script, table = tmp_path / "script.py", write_table(tmp_path)
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, script, run, table], capture_output=True, text=True, timeout=200, env=environment
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["3", "3"], done.stderr  # a fork before the first use is no problem
    assert [line.split()[0] for line in lines[2:9]] == ["REFUSED"] * 7, done.stdout
    assert "had used Rediffuse already" in lines[2]
    assert "spawn" in lines[2]
    assert lines[9:] == ["3", "3"], done.stderr
