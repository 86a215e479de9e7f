"""The notebooks run from scratch, their models learn, and they become pages."""

from __future__ import annotations

import datetime
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *wanted: str) -> dict[str, Any]:
    """Run a notebook in an empty folder, without data sets; the values of the ``wanted`` expressions at its end."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    pairs = ", ".join(f"{text!r}: {text}" for text in wanted)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({{{pairs}}}))"))
    resources = {"metadata": {"path": str(folder)}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert not list(folder.iterdir())  # it leaves no files in its working folder
    return json.loads(notebook.cells[-1].outputs[-1].text)


def test_first_recommendations(tmp_path, monkeypatch):
    found = executed(
        "first_recommendations",
        tmp_path,
        monkeypatch,
        "answer['title'].to_list()",
        "dict(zip(results['model'], results['HR@5 kept'], strict=True))",
        "pairs.height",
    )
    titles, hits, pairs = found.values()
    assert titles[0] == "Lock"  # the stop after the last one of the history
    assert min(hits["DiffuRec"], hits["ablation"]) > 0.6 > 0.4 > hits["item-kNN"] > hits["popularity"]
    assert pairs == 6


@pytest.mark.slow
def test_what_denoising_does(tmp_path, monkeypatch):
    found = executed("what_denoising_does", tmp_path, monkeypatch, "float(knowable)", "states", "x0_hats", "quality")
    knowable, states, x0_hats, quality = found.values()
    assert abs(states[0]) < 0.2  # starts from noise
    assert states[-1] > 0.5  # and ends at the item
    assert min(x0_hats) > 0.9 * max(x0_hats)  # which x0_hat was near from the first step
    for label in ("λ = 0.001", "ablation"):
        assert all(abs(value - knowable) < 0.1 for value in quality[label])
    assert max(quality["λ = 0.001"]) - min(quality["λ = 0.001"]) < 0.02  # steps change nothing
    assert quality["λ = 1"][-1] > quality["λ = 1"][0]  # if the network reads the state, they do
    assert max(quality["λ = 1"]) < knowable - 0.2  # and the result is worse


@pytest.mark.slow
def test_your_shop_with_pandas(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    found = executed(
        "your_shop_with_pandas",
        tmp_path,
        monkeypatch,
        "dict(zip(results['model'], results['NDCG@10 test'], strict=True))",
        "best",
        "checks",
        "news",
        "[str(warning.message) for warning in caught]",
        "sorted({type(table).__module__.split('.')[0] for table in (lists, shoes, cheap, mixed, fresh)})",
        "[len(table) for table in (lists, shoes, mixed, fresh)]",
    )
    quality, best, checks, news, said, kinds, lengths = found.values()
    assert min(quality["theat"], quality["sasrec"]) > 0.05 > 0.03 > quality["popularity"]
    assert best == "theat"
    assert list(checks.values()) == [[0, 0, 0, 0], ["shoes"], ["hats", "socks"], checks["highest price of cheap"], 1]
    assert checks["highest price of cheap"] < 50
    assert news["known items in the fresh lists"] == 0 < news["known items in the lists of before"]
    assert (news["customers since then"], news["of whom new"]) == (40, 20)
    assert len(said) == 1
    assert "'A100'" in said[0]
    assert kinds == ["pandas"]
    assert lengths == [2500, 1500, 2500, 200]


@pytest.mark.slow
def test_cold_start(tmp_path, monkeypatch):
    found = executed(
        "cold_start",
        tmp_path,
        monkeypatch,
        "{row['model'] + ' ' + row['features']: row for row in results.to_dicts()}",
        "ceiling",
        "shares.to_dicts()",
        "why['part'].unique().to_list()",
        "described.filter(user_id=one)['new'].sum()",
    )
    results, ceiling, shares, parts, shown = found.values()
    for model in ("theat", "gru4rec"):
        before, after = results[f"{model} without"], results[f"{model} with"]
        assert before["Recall@20, new items"] == 0 < 0.3 < after["Recall@20, new items"]
        assert after["Recall@20, known items"] > before["Recall@20, known items"]
    assert ceiling["known_items"] < ceiling["all_items"] - 0.1
    for row in shares:
        assert row["share of new"] >= row["new_items"]
        assert row["of these liked"] > (0.7 if row["new_items"] else 0.9)
    assert parts == ["content"]
    assert shown >= 1


@pytest.mark.slow
def test_serve_and_monitor(tmp_path, monkeypatch):
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package)
    monkeypatch.delenv("REDIFFUSE_TOKEN", raising=False)
    found = executed(
        "serve_and_monitor",
        tmp_path,
        monkeypatch,
        "[[item['item_id'] for item in answer['results'][0]['items']] for answer in (known, elsewhere, socks, new)]",
        "elsewhere['ignored_items']",
        "refused['errors'][0]['message']",
        "sorted(requests.values())",
        "[before, after]",
        "{name.split('{')[0]: value for name, value in monitored.items()}",
        "[new['notes'], new['version']]",
        "reloads",
        "service.poll()",
    )
    lists, ignored, mistake, counts, (before, after), monitored, (notes, version), reloads, code = found.values()
    assert [len(items) for items in lists] == [3, 3, 3, 3]
    assert lists[1][0] == "A09"  # the next one of the category
    assert {int(item[1:]) % 4 for item in lists[2]} == {1}  # socks
    assert ignored == ["A99"]
    assert "Did you mean 'users'?" in mistake
    assert counts == [1, 3, 3]
    assert before["version"] != after["version"] == version
    assert before["histories_end"] < after["histories_end"]
    assert notes == []  # nothing is said of an unknown user
    end = datetime.datetime.fromisoformat(after["histories_end"]).timestamp()
    assert monitored == {
        "rediffuse_reloads_total": 1,
        "rediffuse_model_info": 1,
        "rediffuse_histories_end_seconds": end,
    }
    assert reloads == [f"current was reloaded: version {before['version']} -> {version}"]
    assert code is not None  # the service has ended


@pytest.mark.slow
def test_reproduce_a_paper(tmp_path, monkeypatch):
    found = executed(
        "reproduce_a_paper",
        tmp_path,
        monkeypatch,
        "[[row['state'] for row in outcome.rows] for outcome in outcomes.values()]",
        "[outcome.comparison.facts['split']['name'] for outcome in outcomes.values()]",
        "sorted(changed)",
        "[results(name).select('variant', 'mean', 'low').to_dicts() for name in protocols]",
        "diffusion.select('difference_low', 'difference_high').rows()",
        "floor.select('low', 'high').rows()",
        "planned",
    )
    states, splits, changed, tables, diffusion, floor, planned = found.values()
    assert states == [["trained"] * 8] * 2
    assert splits == ["leave-one-out", "global-time"]
    # The network is the paper's but for the options that shrink it.
    assert changed == ["batch_size", "blocks", "embedding_size", "epochs", "learning_rate", "max_length"]
    for table in tables:
        popularity, transition, *networks = (row["mean"] for row in table)
        assert min(transition, *networks) > popularity + 0.05
        assert [row["low"] is None for row in table] == [True, True, False, False]  # one seed has no interval
    assert all(high < 0.02 for _, high in diffusion)  # it does not help
    assert floor[0][1] < 0  # by the paper's protocol, the network is behind the floor
    assert floor[1][0] < 0 < floor[1][1]  # by the honest one, that is open
    assert len(planned) == 8
    assert planned[-1] == "ablation, seed 2"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_become_pages(path):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/hooks/notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = hook.as_markdown(path)
    assert page.startswith("# ")
    assert page.count("``` { .python .input }") >= 5
    assert f'href="{path.name}"' in page
    assert hook.on_page_markdown("[a](../notebooks/b.ipynb#c)") == "[a](../notebooks/b.md#c)"
