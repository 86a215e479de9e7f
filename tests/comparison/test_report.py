"""The report, opened in a browser without a network."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
from pathlib import Path

import polars as pl
import pytest
from tests.comparison.folders import made_up_run

import rediffuse as rd
from rediffuse.comparison import report
from rediffuse.comparison.markdown import sentences, split_text
from rediffuse.errors import MissingExtraError, RunError, StorageError

PUBLISHED = {"A </script> paper": {"source": "arXiv 1", "ndcg@10/unseen": 0.5}}


@pytest.fixture(scope="module")
def written(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report"
    return rd.compare(evaluated.values(), out, metric="ndcg@10/unseen", published=PUBLISHED), out


def opened(browser, out):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.faults, tab.asked = [], []
    tab.on("console", lambda message: tab.faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto((out / "report.html").as_uri())
    tab.wait_for_selector("#slices-items .main-svg")
    return tab


@pytest.fixture(scope="module")
def page(browser, written):
    tab = opened(browser, written[1])
    tab.wait_for_selector("#curves .main-svg")
    return tab


def test_the_page_needs_no_network_and_draws_everything(page):
    assert page.faults == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    plots = ["bars", "ablations", "steps", "cost-train", "cost-serve", "slices-users", "slices-items", "curves"]
    for plot in plots:
        marks = page.locator(f"#{plot} .main-svg .trace path, #{plot} .main-svg .trace .point").count()
        assert marks > 0, plot
    assert page.locator("#legend span").count() == 4


def cell(page, row: str, column: str) -> str:
    heads = page.locator("#summary th").all_inner_texts()
    line = page.locator("#summary tbody tr", has_text=row).first
    return line.locator("td").nth(next(n for n, h in enumerate(heads) if h.strip(" ▾▴") == column)).inner_text()


def test_the_policy_switch_changes_the_table(page, written):
    for policy in ("all", "unseen"):
        page.click(f"[data-policy={policy}]")
        for metric in ("hr@10", "recall@20", "mrr@10"):
            row = written[0].summary.filter(variant="itemknn", policy=policy, metric=metric)
            assert cell(page, "itemknn", metric).startswith(f"{row['mean'][0]:.4f}")
    assert page.get_attribute("[data-policy=unseen]", "aria-pressed") == "true"


def test_a_column_can_be_sorted(page):
    def order() -> list[float]:
        values = page.locator("#summary tbody tr:not(.published) td:nth-child(2)").all_inner_texts()
        return [float(value.split()[0]) for value in values]

    page.click("#summary th >> text=hr@10")
    first = order()
    assert first == sorted(first, reverse=True)
    page.click("#summary th >> text=hr@10")
    assert order() == sorted(first)


def test_the_metric_selector_changes_the_plot(page):
    page.select_option("#metric", "mrr@10")
    for plot, axis in (("bars", "x"), ("cost-train", "y"), ("slices-users", "y")):
        assert page.locator(f"#{plot} .{axis}title").text_content() == "mrr@10"
    assert page.locator("#spread th").first.inner_text() == "mrr@10"
    page.select_option("#metric", "coverage@10")  # has no value per user
    assert page.locator("#slices-users .ytitle").text_content() == "ndcg@10"
    assert page.faults == []


def test_no_plot_is_wider_than_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth == 390")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_page_without_ablations_steps_and_training_hides_their_sections(browser, tmp_path):
    rd.compare([made_up_run(tmp_path / "run", "ease")], tmp_path / "out")
    tab = opened(browser, tmp_path / "out")
    assert [tab.is_visible(f"#{name}-section") for name in ("ablations", "steps", "curves")] == [False, False, False]
    assert not tab.is_visible(".warning")
    assert "one seed" in tab.inner_text("#spread")
    assert tab.faults == []


def test_figures_that_are_not_comparable_carry_a_banner(browser, tmp_path):
    rules = {"comparable": False, "candidates": "sampled-99", "note": "Ranks are <b>among</b> sampled items."}
    rd.compare([made_up_run(tmp_path / "run", "ease", protocol=rules)], tmp_path / "out")
    tab = opened(browser, tmp_path / "out")
    assert tab.inner_text(".warning") == "Not comparable. Ranks are <b>among</b> sampled items."
    assert "sampled-99" in tab.inner_text("#protocol")


def test_published_figures_are_marked(page):
    row = page.locator("#summary tr.published")
    assert "A </script> paper (published, not run here: arXiv 1)" in row.inner_text()
    assert "0.5000" in row.inner_text()


def test_markdown_puts_figures_under_their_names(written):
    comparison, out = written
    text = (out / "report.md").read_text()
    section = text.split("## Seen items filtered")[1]
    heads = [head.strip() for head in next(line for line in section.splitlines() if line.startswith("|")).split("|")]
    line = [cell.strip() for cell in next(line for line in section.splitlines() if "| itemknn" in line).split("|")]
    for metric in ("hr@10", "recall@20", "mrr@10", "novelty@10"):
        mean = comparison.summary.filter(variant="itemknn", policy="unseen", metric=metric)["mean"][0]
        assert line[heads.index(metric)] == f"{mean:.4f}"
    assert "published, not run here" in section


def test_json_and_parquet_hold_the_same(written):
    comparison, out = written
    content = json.loads((out / "report.json").read_text())
    assert content["pairs"] == comparison.pairs.to_dicts()
    assert pl.read_parquet(out / "slices.parquet").equals(comparison.slices)


def test_an_earlier_report_is_replaced_and_other_folders_are_not(written, evaluated, tmp_path):
    again = tmp_path / "again"
    rd.compare(evaluated.values(), again)
    assert (again / "ablations.parquet").exists()
    rd.compare([evaluated["popularity"]], again)
    assert "popularity" in (again / "report.md").read_text()
    assert not (again / "ablations.parquet").exists()
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="exists and is not a report"):
        rd.compare([evaluated["itemknn"]], tmp_path)
    with pytest.raises(RunError, match="exists and is not a report"):
        rd.compare([evaluated["itemknn"]], tmp_path / "thesis.tex")


def test_a_report_that_cannot_be_written_leaves_the_old_one(evaluated, tmp_path, monkeypatch):
    """Whichever write fails: no file of the new report stands beside one of the old."""
    out = tmp_path / "report"
    rd.compare(evaluated.values(), out)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("kept")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    real, failed = Path.write_bytes, 0
    for count in range(20):
        writes = itertools.count()

        def full(path, content, writes=writes, count=count):
            if next(writes) == count:
                real(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        with contextlib.suppress(StorageError):
            rd.compare([evaluated["popularity"]], out)
            break
        failed += 1
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert failed >= 5
    assert (out / "notes" / "mine.txt").read_text() == "kept"
    assert "popularity" in (out / "report.md").read_text()
    assert not (out / "ablations.parquet").exists()


def test_what_an_interrupted_report_left_does_not_block_the_next(evaluated, tmp_path, monkeypatch):
    out = tmp_path / "report"
    out.mkdir()
    for name in ("summary.parquet", ".report.json.tmp-0123abcd", "report.md"):
        (out / name).write_text("torn")
    rd.compare([evaluated["popularity"]], out)
    assert "torn" not in (out / "report.md").read_text()
    monkeypatch.chdir(out)  # a working directory is not exchanged under the user
    rd.compare(evaluated.values(), ".")
    assert Path("ablations.parquet").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_without_plotly_the_error_says_how_to_install_it(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None if name == "plotly" else object())
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'rediffuse[report]'")):
        rd.compare([evaluated["itemknn"]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(rd.compare([evaluated["itemknn"]]).costs) == 1


def test_sentences_name_the_better_variant():
    rows = [
        {"first": "a", "second": "b", "difference": -0.02, "p_holm": 0.001},
        {"first": "a", "second": "c", "difference": 0.01, "p_holm": 0.2},
    ]
    assert sentences(pl.DataFrame(rows)) == [
        "b is better than a (by 0.0200, p = 0.001).",
        "No significant difference: a and c.",
    ]


def test_pairs_are_grouped_by_the_better_variant(page, written):
    lines = page.locator("#pairs tbody tr").all_inner_texts()
    shown = written[0].pairs.filter(policy=page.get_attribute("[data-policy][aria-pressed=true]", "data-policy"))
    better = {a if d >= 0 else b for a, b, d in shown.select("first", "second", "difference").iter_rows()}
    assert set(page.locator("#pairs tr.group td:first-child").all_inner_texts()) == better
    assert len(lines) == len(shown) + len(better)
    assert all(re.match(r"(better than|no significant difference from) ", line) for line in lines if "\t0." in line)


def number(shown: str) -> float | None:
    """The p that a cell shows, to two digits: 0 where it is below 0.0001, None where the cell is empty."""
    return 0.0 if "<" in shown else float(shown.removeprefix("p = ")) if shown else None


def markdown_table(text: str, section: str) -> list[list[str]]:
    """The cells of the first table of a section, heads first."""
    lines = [line for line in text.split(section)[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize(
    ("name", "section", "columns"),
    [
        ("pairs", "## Differences in", {"p (Holm)": "p_holm", "p (FDR)": "p_fdr", "p (seeds)": "p_seeds"}),
        ("ablations", "## Diffusion against", {"p (users)": "p", "p (seeds)": "p_seeds"}),
    ],
)
def test_each_p_is_shown_under_its_name(page, written, name, section, columns):
    """In the page and in Markdown; an empty cell where a variant has one seed."""
    comparison, out = written
    page.click("[data-policy=unseen]")
    rows = getattr(comparison, name).select("policy", *dict.fromkeys(columns.values()))

    def expected(shown: pl.DataFrame) -> list[list[float | None]]:
        values = shown.drop("policy").rows()
        return [[p and (0.0 if p < 0.0001 else float(f"{p:.2g}")) for p in row] for row in values]

    def under(heads: list[str], lines: list[list[str]]) -> list[list[float | None]]:
        return [[number(line[heads.index(head)]) for head in columns] for line in lines]

    table = "pairs" if name == "pairs" else "ablations-table"
    heads = page.locator(f"#{table} th").all_inner_texts()
    lines = [line.locator("td").all_inner_texts() for line in page.locator(f"#{table} tbody tr:not(.group)").all()]
    of_policy = expected(rows.filter(policy="unseen"))
    assert sorted(under(heads, lines), key=str) == sorted(of_policy, key=str)  # the page puts the better one first
    heads, *lines = markdown_table((out / "report.md").read_text(), section)
    assert under(heads, lines) == (of_policy if name == "pairs" else expected(rows))
    assert rows["p_seeds"].drop_nulls().len() > 0
    if name == "pairs":
        assert rows["p_seeds"].null_count() > 0


def test_plots_and_tables_have_names(page):
    assert page.evaluate("[...document.querySelectorAll('.plot, .scroll')].filter((e) => !e.ariaLabel).length") == 0


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ({"name": "leave-one-out", "params": {}}, "leave-one-out"),
        (
            {"name": "ratio", "params": {"test": 0.1, "by_user": True, "seed": None}},
            "ratio: test 0.1, by user yes, seed default",
        ),
    ],
)
def test_splits_are_printed_as_text(split, text):
    assert split_text(split) == text
