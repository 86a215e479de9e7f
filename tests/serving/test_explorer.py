"""The explorer and the training page, in a real browser, over two small runs."""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

import rediffuse as rd
from rediffuse.runs.run_folder import add_files

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")

NASTY = "<img src=x onerror=alert(1)>"


def served(folders, **settings):
    """The address of a server in a thread, and how to stop it."""
    import uvicorn

    from rediffuse.serving.app import create_app
    from rediffuse.serving.settings import Settings

    app = create_app(folders, Settings(**settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end, "The server did not start."
        time.sleep(0.02)

    def stop():
        server.should_exit = True
        thread.join(10)

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


@pytest.fixture(scope="module")
def shown(folders, tmp_path_factory):
    """Two runs: one that denoises and was evaluated, and one that has knowledge paths."""
    out = tmp_path_factory.mktemp("shown")
    pair = [Path(shutil.copytree(folders[place], out / name)) for place, name in ((0, "noisy"), (2, "graph"))]
    # Whatever a card says, it stays text.
    card = (pair[0] / "README.md").read_text() + f"\n## {NASTY}\n\n- **{NASTY}** and `{NASTY}`\n"
    add_files(pair[0], {"README.md": card.encode()})
    return pair


@pytest.fixture(scope="module")
def site(shown):
    address, stop = served(shown)
    yield address
    stop()


@pytest.fixture(scope="module")
def context(browser):
    """One for all pages, so that the plotting library is read once."""
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    yield made
    made.close()


def opened(context, address):
    tab = context.new_page()
    tab.faults, tab.asked = [], []
    tab.on("console", lambda message: tab.faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto(address)
    return tab


def until(tab, expression):
    """Wait for something to be true; playwright's own way needs eval, which the pages forbid."""
    end = time.monotonic() + 15
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(20)


def clean(tab, site):
    """Whether nothing went wrong, and nothing was asked of anybody else."""
    return tab.faults == [] and not [url for url in tab.asked if not url.startswith((site, "data:", "blob:"))]


@pytest.fixture(scope="module")
def explorer(context, site):
    tab = opened(context, site + "/")
    tab.wait_for_selector("#step-list li")
    yield tab
    tab.close()


@pytest.fixture
def page(explorer, site, request):
    """The explorer at one view, reached by a link, as nothing is loaded again then."""
    answered(explorer, lambda: explorer.goto(f"{site}/#run=noisy&run=graph&user=u1&for={request.node.name}"))
    yield explorer
    assert clean(explorer, site)


def titles(tab, run: int = 0) -> list[str]:
    return tab.locator(f".column:nth-child({run + 1}) .title > span:first-child").all_inner_texts()


def chips(tab) -> list[str]:
    return tab.locator("#chips .chip-name").all_inner_texts()


def answered(tab, act) -> dict:
    """What the first run answers to what ``act`` sets off."""
    with tab.expect_response(lambda response: response.url.endswith("/v1/recommend")) as waited:
        act()
    said = waited.value.json()
    until(tab, "document.getElementById('columns').ariaBusy === 'false'")
    until(tab, f"document.querySelector('.column')?.ariaLabel === '{said['model']}'")
    return said


def test_a_first_visit_is_not_empty(explorer, site, shown):
    tab = explorer
    tab.wait_for_selector("#map .main-svg .trace path", state="attached")
    first = rd.Recommender.load(shown[0])
    user = first.user_ids[0]
    asked = dict(zip(first.items["item_id"], first.items["title"], strict=True))
    for place, folder in enumerate(shown):
        items = rd.Recommender.load(folder).recommend(users=[user])["item_id"]
        assert titles(tab, place) == [asked[item] for item in items]
    assert f"person {user}" in tab.inner_text("#whose")
    assert tab.locator(".column .bar").count() == 20
    both = len(set(titles(tab, 0)) & set(titles(tab, 1)))
    assert tab.inner_text("#agreement") == f"{both} of 10 items are in both lists."
    assert tab.locator(".tag >> text=both").count() == 2 * both
    assert clean(tab, site)


def test_a_history_is_put_together_by_keyboard_alone(page):
    answered(page, lambda: page.click("#clear"))
    assert chips(page) == []
    assert page.evaluate("document.activeElement.id") == "search"
    for wanted in ("Film i7", "Film i2"):
        page.keyboard.type(wanted)
        page.wait_for_selector("#found li[aria-selected=true]")
        found = page.locator("#found li").all_inner_texts()
        page.keyboard.press("ArrowDown")
        assert page.get_attribute("#search", "aria-activedescendant") == f"found-{1 % len(found)}"
        page.keyboard.press("ArrowUp")
        answered(page, lambda: page.keyboard.press("Enter"))
        page.focus("#search")
    assert chips(page)[0] == "Film i7"
    assert len(chips(page)) == 2
    first, second = chips(page)
    page.focus("#chips li:nth-child(2) .chip-name")
    answered(page, lambda: page.keyboard.press("Alt+ArrowUp"))
    assert chips(page) == [second, first]
    assert page.evaluate("document.activeElement.textContent") == second
    answered(page, lambda: page.keyboard.press("Delete"))
    assert chips(page) == [first]
    assert re.search(r"item=i7(&|$)", page.url)
    # The recommendation's own button adds to the history, too.
    wanted = titles(page)[0]
    answered(page, lambda: page.locator(".column button").first.click())
    assert chips(page) == [first, wanted]


def test_a_link_brings_the_view_back(context, page):
    answered(page, lambda: page.click("#clear"))
    answered(page, lambda: [page.click("#search"), page.click("#found li >> nth=2")])
    answered(page, lambda: page.fill("#samples", "4"))
    answered(page, lambda: page.click("#again"))
    answered(page, lambda: page.uncheck("#unseen"))
    until(page, "walk.steps.length === 16")
    page.fill("#step", "3")
    other = opened(context, page.url)
    other.wait_for_selector("#step-list li")
    assert [titles(other, n) for n in (0, 1)] == [titles(page, n) for n in (0, 1)]
    assert chips(other) == chips(page)
    assert [other.input_value(f"#{name}") for name in ("samples", "seed", "step")] == ["4", "1", "3"]
    assert not other.is_checked("#unseen")
    assert other.inner_text("#step-list") == page.inner_text("#step-list")
    assert other.faults == []
    other.close()


def test_samples_show_how_sure_a_score_is(page, shown):
    assert page.locator(".column .bar b").count() == 0
    answered(page, lambda: page.fill("#samples", "8"))
    expected = rd.Recommender.load(shown[0]).recommend(users=["u1"], samples=8)
    assert "±" in page.inner_text(".column:nth-child(1) .score >> nth=0")
    assert page.locator(".column:nth-child(1) .bar b").count() == (expected["uncertainty"] > 0).sum()


def test_settings_that_mean_nothing_to_a_run_say_so(page):
    assert page.inner_text("#steps-why").endswith("None in graph.")
    answered(page, lambda: page.uncheck("#runs input[value=noisy]"))
    for name in ("steps", "samples", "noise", "seed"):
        assert page.is_disabled(f"#{name}"), name
        assert "graph" in page.inner_text(f"#{name}-why")
    page.focus("#runs input[value=graph]")
    page.keyboard.press("Space")  # the last one stays
    assert page.is_checked("#runs input[value=graph]")


def test_reasons_are_there_when_asked_for(page):
    box = page.locator(".column:nth-child(2) li details").first
    box.locator("summary").click()
    box.locator("text=Nearest in the catalogue").wait_for()
    text = box.inner_text()
    assert "Nearest in the history" in text
    says = page.locator(".column:nth-child(2) details").all_text_contents()
    assert any(re.search(r"of \d: part \d\.\d+, as for Film i\d+", one) for one in says)


def test_the_path_plays_by_keyboard_and_marks_what_changes(page, shown):
    answered(page, lambda: page.fill("#steps", "8"))
    until(page, "walk.steps.length === 8")
    walked = rd.Recommender.load(shown[0]).denoise(user="u1", sampling_steps=8)
    last = walked.filter(walked["step"] == 7)["item_id"].to_list()
    listed = page.locator("#step-list li > span:first-child").all_inner_texts()
    assert [text.split(" in the")[0] for text in listed] == [f"Film {item}" for item in last]
    assert page.inner_text("#step-out").startswith("8 of 8, t = ")
    before = page.evaluate("JSON.stringify(document.getElementById('map').data[4].x)")
    page.locator("#step").focus()
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause"
    until(page, "document.getElementById('step').value === '2'")
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Play"
    number = int(page.input_value("#step"))
    assert f"step={number}" in page.url
    assert page.evaluate("JSON.stringify(document.getElementById('map').data[4].x)") != before
    for step in range(1, 8):
        page.fill("#step", str(step))
        now, earlier = (walked.filter(walked["step"] == n)["item_id"].to_list() for n in (step, step - 1))
        moved = [n for n, item in enumerate(now) if item not in earlier or earlier.index(item) != n]
        marked = [n for n, one in enumerate(page.locator("#step-list .change").all_inner_texts()) if one]
        assert marked == moved
    assert re.search(r"hold \d+ % of how the vectors differ", page.inner_text("#map-says"))


def test_a_run_without_denoising_has_a_map_and_says_why_there_is_no_path(page):
    page.select_option("#path-run", "graph")
    until(page, "document.getElementById('path-says').textContent.includes('does not denoise')")
    assert not page.is_visible("#player")
    assert page.locator("#step-list li").count() == 10
    assert page.locator("#map .trace path").count() > 40


def test_a_person_is_taken_by_id_and_an_unknown_one_is_refused_in_words(page):
    page.fill("#person", "u5")
    page.wait_for_selector("#people option[value=u5]", state="attached")
    answered(page, lambda: page.press("#person", "Enter"))
    assert "person u5" in page.inner_text("#whose")
    page.fill("#person", "nobody")
    page.press("#person", "Enter")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "knows nobody" in page.inner_text("#trouble")
    page.faults.clear()  # the browser logs the 404


def test_the_training_page_draws_everything(context, site):
    tab = opened(context, f"{site}/training")
    for plot in ("loss", "validation", "slices-plot", "quality-plot"):
        tab.wait_for_selector(f"#{plot} .main-svg .trace path", state="attached")
    # Two runs, seen items kept and filtered; one of them was evaluated.
    assert tab.locator("#metrics tbody tr").count() == 6
    assert "Not evaluated on the test subset: graph" in tab.inner_text("#metrics caption")
    card = tab.locator(".card").first
    assert card.locator("h4", has_text=NASTY).count() == 1
    assert card.locator("code", has_text=NASTY).count() == 1
    assert tab.locator("main img").count() == 0
    tab.select_option("#metric", "mrr@10")
    assert tab.locator("#validation .ytitle").text_content() == "mrr@10, seen items kept"
    assert "metric=mrr%4010" in tab.url
    tab.locator("#runs input[value=graph]").uncheck()
    until(tab, "document.querySelectorAll('.card').length === 1")
    assert clean(tab, site)
    tab.close()


@pytest.mark.parametrize("where", ["/", "/training"])
def test_pages_fit_a_phone_in_the_dark(context, site, where):
    tab = opened(context, site + where)
    tab.wait_for_selector("#step-list li" if where == "/" else "#validation .main-svg")
    tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
    tab.set_viewport_size({"width": 390, "height": 844})
    until(tab, "document.documentElement.scrollWidth === 390")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 29)"
    plot = "#map" if where == "/" else "#loss"
    until(tab, f"document.querySelector('{plot}').layout.font.color === '#e7eaf0'")
    assert clean(tab, site)
    tab.close()


def test_a_token_is_asked_for_and_never_part_of_a_link(context, shown):
    address, stop = served(shown[:1], token="a-secret")
    try:
        tab = opened(context, address + "/")
        for token in ("wrong", "a-secret"):
            tab.wait_for_selector("#token-form:not([hidden])")
            if token == "a-secret":
                until(tab, "document.getElementById('token-label').textContent.includes('refused')")
            tab.fill("#token", token)
            tab.press("#token", "Enter")
        tab.wait_for_selector("#step-list li")
        assert not tab.is_visible("#token-form")
        assert all("a-secret" not in url for url in [tab.url, *tab.asked])
        tab.reload()
        tab.wait_for_selector("#step-list li")
        tab.close()
    finally:
        stop()


def fetch(address: str, **headers: str):
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20)
    except HTTPError as answer:
        return answer


def test_files_are_compressed_and_kept(site):
    names = re.findall(r"static/[a-z.]+\?v=[0-9a-f]+", fetch(site + "/").read().decode())
    assert len(names) == 3
    for name in names:
        answer = fetch(f"{site}/{name}", **{"Accept-Encoding": "gzip"})
        plain = fetch(f"{site}/{name}").read()
        assert gzip.decompress(answer.read()) == plain
        assert "immutable" in answer.headers["Cache-Control"]
        again = fetch(f"{site}/{name}", **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status, again.read()) == (304, b"")
        assert fetch(f"{site}/{name.split('?')[0]}").headers["Cache-Control"] == "no-cache"


def test_pages_let_nothing_else_in(site):
    for where in ("/", "/training", "/static/app.js"):
        answer = fetch(site + where)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self';")
        assert "script-src" not in policy
        assert "unsafe-eval" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    for where in ("/", "/training"):
        text = fetch(site + where).read().decode()
        assert not re.search(r"<script(?![^>]* src=)| on[a-z]+=|https?://", text)
    assert fetch(site + "/static/../app.py").status == 404
    assert fetch(site + "/static/base.html.j2").status == 404
