"""The explorer and the training page in a real browser, with two small runs."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import polars as pl
import pytest

import rediffuse as rd
from rediffuse.runs.run_folder import add_files

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")
pytest.importorskip("plotly")

HTML = "<img src=x onerror=alert(1)>"


def served(folders, **settings):
    """Start a server in a thread; return its address and a function that stops it."""
    from rediffuse.serving.app import create_app
    from rediffuse.serving.connections import Server
    from rediffuse.serving.settings import Settings

    app = create_app(folders, Settings(**settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = Server(app, Settings(**settings))
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
def runs(folders, tmp_path_factory):
    """A run that denoises and was evaluated, one with knowledge paths, and one that diffuses mass."""
    out = tmp_path_factory.mktemp("runs")
    found = [
        Path(shutil.copytree(folders[number], out / name)) for number, name in ((0, "noisy"), (2, "graph"), (4, "mass"))
    ]
    # The content of a card must stay text.
    card = (found[0] / "README.md").read_text() + f"\n## {HTML}\n\n- **{HTML}** and `{HTML}`\n"
    add_files(found[0], {"README.md": card.encode()})
    return found


@pytest.fixture(scope="module")
def site(runs):
    address, stop = served(runs)
    yield address
    stop()


@pytest.fixture(scope="module")
def context(browser):
    """One context for all pages, so that the plotting library is loaded once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


def opened(context, address):
    tab = context.new_page()
    tab.errors, tab.requests = [], []
    tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(address)
    return tab


def until(tab, expression):
    """Wait until an expression is true. Playwright's wait_for_function needs eval, which the pages forbid."""
    end = time.monotonic() + 15
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(20)


def check_clean(tab, site):
    """Check that no error was logged and that all requests went to the service."""
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith((site, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def explorer(context, site):
    tab = opened(context, site + "/")
    tab.wait_for_selector("#step-list li")
    yield tab
    tab.close()


@pytest.fixture
def page(explorer, site, request):
    """The explorer at the same state for every test. A link sets it, which loads nothing again."""
    updated(explorer, lambda: explorer.goto(f"{site}/#run=noisy&run=graph&user=u1&for={request.node.name}"))
    yield explorer
    check_clean(explorer, site)


def titles(tab, run: int = 0) -> list[str]:
    return tab.locator(f".column:nth-child({run + 1}) .title > span:first-child").all_inner_texts()


def history(tab) -> list[str]:
    return tab.locator("#history-list .history-title").all_inner_texts()


def updated(tab, act) -> None:
    """Call ``act``, and wait until the explorer shows the recommendations and the trajectory that it causes."""
    with tab.expect_response(lambda response: response.url.endswith("/v1/recommend")):
        act()
    until(tab, "document.getElementById('columns').ariaBusy === 'false'")
    until(tab, "document.getElementById('trajectory').ariaBusy === 'false'")


def test_the_first_visit_shows_the_first_user(explorer, site, runs):
    tab = explorer
    tab.wait_for_selector("#map .main-svg .trace path", state="attached")
    first = rd.Recommender.load(runs[0])
    user = first.user_ids[0]
    title_of = dict(zip(first.items["item_id"], first.items["title"], strict=True))
    for number, folder in enumerate(runs[:2]):
        items = rd.Recommender.load(folder).recommend(users=[user])["item_id"]
        assert titles(tab, number) == [title_of[item] for item in items]
    assert f"interactions of user {user}" in tab.inner_text("#history-summary")
    assert tab.locator(".column .bar").count() == 20
    both = len(set(titles(tab, 0)) & set(titles(tab, 1)))
    assert tab.inner_text("#agreement") == f"{both} of 10 items are in both lists."
    assert tab.locator(".tag >> text=both").count() == 2 * both
    check_clean(tab, site)


def test_the_keyboard_is_enough_to_edit_the_history(page):
    updated(page, lambda: page.click("#clear"))
    assert history(page) == []
    assert page.evaluate("document.activeElement.id") == "search"
    for title in ("Film i7", "Film i2"):
        page.keyboard.type(title)
        page.wait_for_selector("#found li[aria-selected=true]")
        found = page.locator("#found li").all_inner_texts()
        page.keyboard.press("ArrowDown")
        assert page.get_attribute("#search", "aria-activedescendant") == f"found-{1 % len(found)}"
        page.keyboard.press("ArrowUp")
        updated(page, lambda: page.keyboard.press("Enter"))
        page.focus("#search")
    assert history(page)[0] == "Film i7"
    assert len(history(page)) == 2
    first, second = history(page)
    page.focus("#history-list li:nth-child(2) .history-title")
    updated(page, lambda: page.keyboard.press("Alt+ArrowUp"))
    assert history(page) == [second, first]
    assert page.evaluate("document.activeElement.textContent") == second
    updated(page, lambda: page.keyboard.press("Delete"))
    assert history(page) == [first]
    assert re.search(r"item=i7(&|$)", page.url)
    # The button of a recommendation adds it to the history.
    recommended = titles(page)[0]
    updated(page, lambda: page.locator(".column button").first.click())
    assert history(page) == [first, recommended]


def test_a_link_restores_the_state(context, page):
    updated(page, lambda: page.click("#clear"))
    updated(page, lambda: [page.click("#search"), page.click("#found li >> nth=2")])
    updated(page, lambda: page.fill("#samples", "4"))
    updated(page, lambda: page.click("#new-seed"))
    updated(page, lambda: page.uncheck("#filter_seen"))
    assert page.get_attribute("#step", "max") == "15"
    page.fill("#step", "3")
    other = opened(context, page.url)
    other.wait_for_selector("#step-list li")
    assert [titles(other, n) for n in (0, 1)] == [titles(page, n) for n in (0, 1)]
    assert history(other) == history(page)
    assert [other.input_value(f"#{name}") for name in ("samples", "seed", "step")] == ["4", "1", "3"]
    assert not other.is_checked("#filter_seen")
    assert other.inner_text("#step-list") == page.inner_text("#step-list")
    assert other.errors == []
    other.close()


def test_samples_show_the_standard_deviation_of_scores(page, runs):
    assert page.locator(".column .bar b").count() == 0
    updated(page, lambda: page.fill("#samples", "8"))
    expected = rd.Recommender.load(runs[0]).recommend(users=["u1"], samples=8)
    assert "±" in page.inner_text(".column:nth-child(1) .score >> nth=0")
    assert page.locator(".column:nth-child(1) .bar b").count() == (expected["uncertainty"] > 0).sum()


def test_settings_without_effect_on_a_run_say_so(page):
    assert page.inner_text("#sampling_steps-note").endswith("No effect on graph.")
    updated(page, lambda: page.uncheck("#runs input[value=noisy]"))
    for name in ("sampling_steps", "samples", "noise", "seed"):
        assert page.is_disabled(f"#{name}"), name
        assert "graph" in page.inner_text(f"#{name}-note")
    page.focus("#runs input[value=graph]")
    page.keyboard.press("Space")  # the last run stays checked
    assert page.is_checked("#runs input[value=graph]")


def test_explanations_have_near_items_and_knowledge_paths(page):
    box = page.locator(".column:nth-child(2) li details").first
    box.locator("summary").click()
    box.locator("text=Most similar in the catalogue").wait_for()
    text = box.inner_text()
    assert "Nearest in the history" in text
    texts = page.locator(".column:nth-child(2) details").all_text_contents()
    assert any(re.search(r"of \d: part \d\.\d+, as for Film i\d+", one) for one in texts)


def test_the_trajectory_plays_by_keyboard_and_marks_changes(page, runs):
    updated(page, lambda: page.fill("#sampling_steps", "8"))
    trajectory = rd.Recommender.load(runs[0]).denoise(user="u1", sampling_steps=8)
    last = trajectory.filter(trajectory["step"] == 7)["item_id"].to_list()
    listed = page.locator("#step-list li > span:first-child").all_inner_texts()
    assert [text.split(" in the")[0] for text in listed] == [f"Film {item}" for item in last]
    assert page.inner_text("#step-value").startswith("8 of 8, t = ")
    before = page.evaluate("JSON.stringify(document.getElementById('map').data[5].x)")
    page.locator("#step").focus()
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause"
    until(page, "document.getElementById('step').value === '2'")
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Play"
    number = int(page.input_value("#step"))
    assert f"step={number}" in page.url
    assert page.evaluate("JSON.stringify(document.getElementById('map').data[5].x)") != before
    for step in range(1, 8):
        page.fill("#step", str(step))
        items, previous = (trajectory.filter(trajectory["step"] == n)["item_id"].to_list() for n in (step, step - 1))
        changed = [n for n, item in enumerate(items) if item not in previous or previous.index(item) != n]
        marked = [n for n, one in enumerate(page.locator("#step-list .change").all_inner_texts()) if one]
        assert marked == changed
    assert re.search(r"explain \d+% of their variance", page.inner_text("#map-note"))


def test_scores_show_their_shares(page, site, runs):
    updated(page, lambda: page.goto(f"{site}/#run=noisy&run=mass&user=u2"))
    lists = rd.Recommender.load(runs[2]).recommend(users=["u2"], explain=True)
    rows = page.locator(".column:nth-child(2) ol > li")
    for n, because in enumerate(lists["because"].to_list()):
        totals = {}
        for one in because:
            name = one["history_title"] or one["part"]
            totals[name] = totals.get(name, 0) + one["share"]
        assert rows.nth(n).locator(".shares i").count() == len(totals)
        share = max(share for name, share in totals.items() if name != "other")
        best = {f"{name} {100 * share:.0f}%" for name, one in totals.items() if one == share}
        assert rows.nth(n).locator(".shares-text").inner_text().startswith(tuple(best))
    widths = page.evaluate("[...document.querySelector('.shares').children].map((one) => parseFloat(one.style.width))")
    assert sum(widths) == pytest.approx(100, abs=0.1)
    rows.first.locator("summary").click()
    text = rows.first.locator("details").inner_text()
    assert "Shares of the score" in text
    assert "hop 1" in text
    assert page.locator(".column:nth-child(1) .shares").count() == 0


def test_mass_spreads_over_the_map_hop_by_hop(page, site, runs):
    updated(page, lambda: page.goto(f"{site}/#run=noisy&run=mass&user=u2&trajectory=mass"))
    assert page.inner_text("#trajectory-heading") == "How mass spreads from the history"
    spread = rd.Recommender.load(runs[2]).spread(user="u2", k=40)
    hops = spread["hop"].unique(maintain_order=True).to_list()
    assert page.get_attribute("#step", "max") == str(len(hops) - 1)
    assert page.inner_text("#step-value") == "4 of 4, scores"
    circles = "JSON.stringify(document.getElementById('map').data[2].marker.size)"
    seen = []
    for step, hop in enumerate(hops):
        page.fill("#step", str(step))
        found = spread.filter(hop=hop)
        items = found.head(10)["item_id"].to_list()
        listed = page.locator("#step-list li > span:first-child").all_inner_texts()
        assert [text.split(" in the")[0] for text in listed] == [f"Film {item}" for item in items]
        assert page.inner_text("#step-note").startswith(f"{len(found)} items have mass.")
        share = found["mass"][0] / found["mass"].sum()
        assert page.locator("#step-list .change").first.inner_text() == f"{100 * share:.1f}%"
        until(page, f"!{seen}.includes({circles})")
        seen.append(page.evaluate(circles))
    page.fill("#step", "0")
    page.locator("#step").focus()
    page.keyboard.press("Space")
    until(page, "document.getElementById('step').value === '3'")
    updated(page, lambda: page.click("#clear"))
    assert "no mass to spread" in page.inner_text("#trajectory-note")
    assert not page.is_visible("#player")
    updated(page, lambda: page.select_option("#trajectory-run", "noisy"))
    assert page.inner_text("#trajectory-heading") == "Denoising trajectory"


def test_a_run_without_denoising_has_a_map_but_no_trajectory(page):
    page.select_option("#trajectory-run", "graph")
    until(page, "document.getElementById('trajectory-note').textContent.includes('does not denoise')")
    assert not page.is_visible("#player")
    assert page.locator("#step-list li").count() == 10
    assert page.locator("#map .trace path").count() > 40


def test_a_user_is_loaded_by_id_and_an_unknown_user_is_refused(page):
    page.fill("#user", "u5")
    page.wait_for_selector("#users option[value=u5]", state="attached")
    updated(page, lambda: page.press("#user", "Enter"))
    assert "interactions of user u5" in page.inner_text("#history-summary")
    page.fill("#user", "unknown")
    page.press("#user", "Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "no user with the id “unknown”" in page.inner_text("#error")
    page.errors.clear()  # the browser logs the 404


def test_the_training_page_draws_everything(context, site):
    tab = opened(context, f"{site}/training")
    for plot in ("loss", "validation", "slices-plot", "quality-plot"):
        tab.wait_for_selector(f"#{plot} .main-svg .trace path", state="attached")
    # Validation of two runs and test of one, each with seen items kept and filtered.
    assert tab.locator("#metrics tbody tr").count() == 6
    assert "Not evaluated on the test subset: graph" in tab.inner_text("#metrics caption")
    card = tab.locator(".card").first
    assert card.locator("h4", has_text=HTML).count() == 1
    assert card.locator("code", has_text=HTML).count() == 1
    assert tab.locator("main img").count() == 0
    tab.select_option("#metric", "mrr@10")
    assert tab.locator("#validation .ytitle").text_content() == "mrr@10, seen items kept"
    assert "metric=mrr%4010" in tab.url
    tab.locator("#runs input[value=graph]").uncheck()
    until(tab, "document.querySelectorAll('.card').length === 1")
    check_clean(tab, site)
    tab.close()


def test_plots_keep_their_height_when_the_window_is_resized(page):
    updated(page, lambda: page.click("#new-seed"))  # draws the map again
    assert page.evaluate("document.getElementById('map').offsetHeight") == 500
    page.set_viewport_size({"width": 1000, "height": 1200})
    until(page, "document.querySelector('#map .main-svg').clientWidth < 540")  # Plotly has followed
    assert page.evaluate("document.getElementById('map').offsetHeight") == 500
    page.set_viewport_size({"width": 1280, "height": 900})
    until(page, "document.querySelector('#map .main-svg').clientWidth > 540")


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
    check_clean(tab, site)
    tab.close()


def test_the_token_is_requested_and_never_part_of_a_link(context, runs):
    address, stop = served(runs[:1], token="a-secret")
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
        assert all("a-secret" not in url for url in [tab.url, *tab.requests])
        tab.reload()
        tab.wait_for_selector("#step-list li")
        tab.close()
    finally:
        stop()


def fetch(address: str, **headers: str):
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20)
    except HTTPError as response:
        return response


def test_files_are_compressed_and_cached(site):
    addresses = re.findall(r"static/[0-9a-f]+/[a-z.]+", fetch(site + "/").read().decode())
    assert [address.split("/")[-1] for address in addresses] == ["style.css", "plotly.js", "explorer.js"]
    for address in addresses:
        response = fetch(f"{site}/{address}", **{"Accept-Encoding": "gzip"})
        plain = fetch(f"{site}/{address}").read()
        assert gzip.decompress(response.read()) == plain
        assert "immutable" in response.headers["Cache-Control"]
        again = fetch(f"{site}/{address}", **{"If-None-Match": response.headers["ETag"]})
        assert (again.status, again.read()) == (304, b"")
        assert fetch(f"{site}/static/old/{address.split('/')[-1]}").headers["Cache-Control"] == "no-cache"


def test_modules_import_each_other_and_every_module_is_used(site):
    (folder,) = re.findall(r"static/[0-9a-f]+(?=/explorer.js)", fetch(site + "/").read().decode())
    found, left = set(), ["explorer.js", "training.js", "docs.js"]
    while left:
        name = left.pop()
        found.add(name)
        text = fetch(f"{site}/{folder}/{name}").read().decode()
        left += set(re.findall(r'from "\./(\w+\.js)"', text)) - found
    pages = Path(rd.__file__).parent / "serving/pages"
    assert found == {path.name for path in pages.glob("*.js")}


def test_pages_run_only_their_own_scripts(site):
    for where in ("/", "/training", "/static/x/explorer.js"):
        response = fetch(site + where)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self';")
        assert "script-src" not in policy
        assert "unsafe-eval" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
    for where in ("/", "/training"):
        text = fetch(site + where).read().decode()
        assert not re.search(r"<script(?![^>]* src=)| on[a-z]+=|https?://", text)
    for name in ("../app.py", "x/../../app.py", "x/..%2fapp.py", "x/base.html.j2", "x/none.js", "explorer.js"):
        assert fetch(f"{site}/static/{name}").status == 404, name


def test_the_description_of_the_api_renders_from_local_files(context, site):
    tab = opened(context, f"{site}/docs")
    tab.wait_for_selector(".opblock")
    described = json.load(urllib.request.urlopen(f"{site}/openapi.json"))["paths"]
    assert tab.locator(".opblock").count() == sum(map(len, described.values()))
    tab.click("#operations-default-models_v1_models_get .opblock-summary-control")
    tab.click("text=Try it out")
    with tab.expect_response(lambda response: response.url.endswith("/v1/models")) as answered:
        tab.click("button.execute")
    assert answered.value.status == 200
    tab.wait_for_selector(".live-responses-table")
    check_clean(tab, site)
    tab.close()


@pytest.fixture(scope="module")
def shop(split, tmp_path_factory):
    """The address of a run whose items have a category and a price."""
    data = split.dataset
    ids = data.item_ids
    table = pl.DataFrame(
        {
            "item_id": ids,
            "category": [("shoes", "hats")[n % 2] for n in range(len(ids))],
            "price": [float(n) for n in range(len(ids))],
        }
    )
    priced = rd.split.leave_one_out(dataclasses.replace(data, items=table, title=None))
    folder = rd.train("itemknn", priced, tmp_path_factory.mktemp("shop") / "shop").path
    address, stop = served([folder])
    yield address
    stop()


def test_item_columns_are_shown_and_filters_are_sent(context, shop):
    tab = opened(context, f"{shop}/#run=shop&user=u1")
    tab.wait_for_selector(".item-columns")
    assert re.fullmatch(r"category: (shoes|hats) · price: \d+", tab.locator(".item-columns").first.inner_text())
    bodies = []

    def answer(route):
        bodies.append(json.loads(route.request.post_data))
        route.fulfill(json={"version": "x", "notes": [], "results": [{"user": 0, "items": []}]})

    tab.route("**/v1/recommend", answer)
    tab.select_option("#filter-column", "category")
    tab.fill("#filter-values", "shoes, hats")
    updated(tab, lambda: tab.click("text=Add the filter"))
    assert bodies[-1]["filter"] == {"column": "category", "in": ["shoes", "hats"]}
    tab.select_option("#filter-column", "price")
    tab.fill("#filter-from", "3")
    tab.fill("#filter-below", "20")
    updated(tab, lambda: tab.click("text=Add the filter"))
    last = {"column": "price", "range": {"gte": 3, "lt": 20}}
    assert bodies[-1]["filter"] == {"and": [{"column": "category", "in": ["shoes", "hats"]}, last]}
    assert "No item is left to recommend after the filters" in tab.inner_text(".column")
    assert tab.locator("#filter-list li > span").all_inner_texts() == ["category is shoes or hats", "3 ≤ price < 20"]
    other = opened(context, tab.url)  # a link keeps the filters
    until(other, "document.querySelectorAll('#filter-list li').length === 2")
    other.close()
    updated(tab, lambda: tab.click("#filter-list li:first-child button"))
    assert bodies[-1]["filter"] == last
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.close()


def test_filters_are_hidden_without_columns(page):
    assert not page.is_visible("#filters")


def test_a_random_user_is_loaded(page):
    updated(page, lambda: page.click("#random-user"))
    assert re.search(r"interactions of user u\d+", page.inner_text("#history-summary"))


def test_an_unknown_user_gets_a_message_without_routes(page):
    page.fill("#user", "stranger")
    page.click("#user-form [type=submit]")
    until(page, "!document.getElementById('error').hidden")
    message = page.inner_text("#error")
    assert "noisy knows no user with the id “stranger”" in message
    assert "/v1" not in message
    page.evaluate("document.getElementById('error').hidden = true")
    page.errors.clear()  # the browser logs the 404


def test_images_have_names(context, site):
    for address in ("/", "/training"):
        tab = opened(context, site + address)
        until(tab, "document.querySelectorAll('.main-svg').length > 0")
        unnamed = "[...document.querySelectorAll('[role=img]')].filter((one) => !one.getAttribute('aria-label')).length"
        assert tab.locator("[role=img]").count() >= 1
        assert tab.evaluate(unnamed) == 0
        tab.close()
