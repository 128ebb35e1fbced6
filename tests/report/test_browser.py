"""The pages in a real browser, opened from file://: nothing is fetched, no error, and everything works by keyboard."""

import os
import re
import shutil

import pyarrow.parquet as pq
import pytest

from hardsample.evaluation.comparing import compare_scores
from hardsample.report.compared import compared_page
from hardsample.report.page import write_page, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("HARDSAMPLE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser, and is not installed")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: looked for {', '.join(BROWSERS)} on PATH and for HARDSAMPLE_BROWSER"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(scored_folder, experiment_folder, tmp_path_factory):
    """Return the pages of a scoring, of an experiment, and of a comparison in which λ* of some samples differ."""
    folder = tmp_path_factory.mktemp("pages")
    first, second = (shutil.copytree(scored_folder, folder / name) for name in ("first", "second"))
    table = pq.read_table(first / "scores.parquet")
    # the hostile sample's completions are empty, and a comparison leaves unfinished samples out
    solved_not = [
        "unsolved" if stratum == "unfinished" else stratum for stratum in table.column("pism_stratum").to_pylist()
    ]
    table = table.set_column(
        table.schema.get_field_index("pism_stratum"), table.schema.field("pism_stratum"), [solved_not]
    )
    pq.write_table(table, first / "scores.parquet")
    for name in ("pism_stratum", "failure_threshold"):
        column = table.column(name).to_pylist()
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [column[::-1]])
    pq.write_table(table, second / "scores.parquet")
    comparison = compared_page(compare_scores(first, second), "compare.jsonl")
    return {
        "report": write_report(scored_folder, folder / "report.html"),
        "experiment": write_report(experiment_folder, folder / "experiment.html"),
        "comparison": write_page(comparison, folder / "compare.html"),
    }


@pytest.fixture
def opened(browser, pages):
    """Open a page; fail the test on any error in the console or a script, and on any external request."""
    contexts, problems = [], []

    def on_request(request):
        if not request.url.startswith(("file:", "data:")):
            problems.append(f"request of {request.url}")

    def open_page(name="report", viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", on_request)
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def shown(page) -> list[str]:
    """Return the ids of the visible samples, in order."""
    return page.eval_on_selector_all("[data-items] > :not([hidden])", "items => items.map((item) => item.dataset.id)")


def test_the_page_opens_with_its_charts_and_images(opened):
    page = opened()
    assert page.title().startswith("How hard ")
    assert page.locator("svg.chart").first.bounding_box()["width"] > 300
    image = page.locator(".card img").first
    image.scroll_into_view_if_needed()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    fill = page.locator('svg.chart [fill="var(--hard)"]').first.evaluate("shape => getComputedStyle(shape).fill")
    assert re.match(r"(color|rgb)", fill), "a chart's colour is a variable of the page, and resolves"


def test_filters_hide_what_does_not_fit(opened):
    page = opened()
    every = shown(page)
    stratum = page.locator('[data-filter="stratum"]')
    wanted = stratum.locator("option").nth(1).inner_text()
    stratum.select_option(wanted)
    kept = shown(page)
    assert 0 < len(kept) < len(every)
    badges = page.locator("[data-items] > :not([hidden]) .card .badge").all_inner_texts()
    assert set(badges) == {wanted}
    assert page.locator("[data-count]").inner_text().startswith(str(len(kept)))
    page.locator("[data-search]").fill("no sample says this")
    assert shown(page) == []
    assert page.locator("[data-empty]").is_visible()
    page.locator("[data-search]").fill(kept[0])
    assert shown(page) == [kept[0]]


def test_sorting_puts_samples_in_order(opened):
    page = opened()
    by_id = shown(page)
    for key in ("threshold", "balance", "rollouts"):
        page.locator("[data-sort]").select_option(key)
        values = page.eval_on_selector_all(
            "[data-items] > *", "(items, key) => items.map((item) => item.getAttribute('data-by-' + key))", key
        )
        numbers = [float(value) for value in values if value is not None]
        assert numbers == sorted(numbers) and len(set(numbers)) > 1
        assert values == [value for value in values if value is not None] + [None] * values.count(None), (
            "unknown ones last"
        )
        page.locator("[data-descending]").check()
        values = page.eval_on_selector_all(
            "[data-items] > *", "(items, key) => items.map((item) => item.getAttribute('data-by-' + key))", key
        )
        numbers = [float(value) for value in values if value is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert values[len(numbers) :] == [None] * (len(values) - len(numbers))
        page.locator("[data-descending]").uncheck()
    page.locator("[data-sort]").select_option("id")
    assert shown(page) == by_id


def test_the_list_of_moved_samples_can_be_filtered_and_sorted(opened, hostile):
    page = opened("comparison")
    every = shown(page)
    assert hostile in every
    page.locator('[data-filter="move"]').select_option(index=1)
    assert 0 < len(shown(page)) < len(every)
    page.locator('[data-filter="move"]').select_option(index=0)
    page.locator("[data-sort]").select_option("change")
    changes = page.eval_on_selector_all("[data-items] > *", "items => items.map((item) => +item.dataset.byChange)")
    assert changes == sorted(changes) and changes[0] < 0 < changes[-1]


def test_a_click_opens_a_sample_and_shows_what_it_said(opened):
    page = opened()
    page.locator("[data-open]").nth(3).click()
    dialog = page.locator("dialog[open]")
    assert dialog.count() == 1
    assert dialog.locator(".completions li").count() > 0
    assert dialog.locator(".strip img").count() >= 3
    assert dialog.locator("svg.ladder").bounding_box()["height"] > 50
    dialog.locator("[data-close]").click()
    assert page.locator("dialog[open]").count() == 0
    page.locator("[data-open]").nth(3).click()
    page.mouse.click(5, 5)  # beside it
    assert page.locator("dialog[open]").count() == 0


def test_everything_works_by_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("[data-search]").focus()
    for _ in range(3):
        page.keyboard.press("Tab")  # the sort order, the check box, the first sample
    first, second = shown(page)[:2]
    assert page.evaluate("document.activeElement.matches('[data-open]')")
    page.keyboard.press("Enter")
    heading = page.locator("dialog[open] h3")
    assert heading.inner_text() == first
    page.keyboard.press("ArrowRight")
    assert heading.inner_text() == second
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert heading.inner_text() == shown(page)[-1], "round the corner"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_script_in_the_data_stays_text(opened, hostile):
    page = opened()
    index = shown(page).index(hostile)
    page.locator("[data-items] > * [data-open]").nth(index).click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h3").inner_text() == hostile
    assert hostile in dialog.locator(".asked").inner_text()
    assert hostile in dialog.locator(".words").first.inner_text()
    page.keyboard.press("Escape")
    assert hostile in page.locator('[data-filter="ability"] option').all_inner_texts()
    page.locator('[data-filter="ability"]').select_option(hostile)
    assert shown(page) == [hostile]
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, img[onerror]").count() == 0


def test_the_policy_stops_a_script_that_got_in(browser, pages):
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.hacked=1\">')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked=1'}))")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.close()


@pytest.mark.parametrize("name", ["report", "experiment", "comparison"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_no_page_is_wider_than_the_screen(opened, name, viewport):
    page = opened(name, viewport)
    assert page.locator("svg.chart").count() > 1
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_sample_fits_the_screen(opened, viewport):
    page = opened(viewport=viewport)
    page.locator("[data-open]").first.click()
    box = page.locator("dialog[open]").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
    assert page.evaluate(
        "(([dialog]) => dialog.scrollWidth <= dialog.clientWidth)(document.querySelectorAll('dialog[open]'))"
    )


def test_light_and_dark_follow_the_system_and_the_button(opened):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    assert ground(light) != ground(dark)
    light.locator("#theme").click()
    assert ground(light) == ground(dark)
    light.locator("#theme").click()
    assert ground(light) != ground(dark)
    text = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    assert light.evaluate(text) != dark.evaluate(text), "letters of the charts too"
