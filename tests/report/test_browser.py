"""The page in a real browser: what one clicks does what it says, on phones and desktops, by day and by night."""

import json
import shutil

import pytest
from run_folders import write_run

from lightning_lm.report.page import report, write_page
from lightning_lm.report.runs import collect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

LOSSES = {(1e-3, 0.0): 3.4, (1e-3, 0.1): 3.2, (1e-2, 0.0): 3.3, (1e-2, 0.1): 3.0, (1e-1, 0.0): None, (1e-1, 0.1): 4.0}
SIZES = [(390, "light"), (1400, "dark")]
SLOW_SIZES = [pytest.param(size, marks=pytest.mark.slow) for size in [(390, "dark"), (1400, "light")]]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "grid"
    for number, ((rate, decay), loss) in enumerate(LOSSES.items()):
        own = f"optimizer.lr={rate}", f"optimizer.weight_decay={decay}"
        write_run(folder / str(number), *own, loss=loss, status="finished" if loss else "diverged")
    report([folder], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def new_page(browser, width=1400, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(200_000)  # ms; on a busy machine a page takes its time
    return page


@pytest.fixture(params=[*SIZES, *SLOW_SIZES], ids=lambda size: f"{size[0]} {size[1]}")
def page(request, browser, address):
    width, scheme = request.param
    page = new_page(browser, width, scheme)
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert errors == []


def traces(page):
    return json.loads(
        page.evaluate(
            "JSON.stringify(document.getElementById('curves').data.map(t => [t.legendgroup, t.visible, t.x, t.y]))"
        )
    )


def rows(page):
    return page.locator("tr[data-run]:not([hidden])").evaluate_all("rows => rows.map(row => row.dataset.run)")


def test_everything_can_be_reached_and_does_what_it_says(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    for plot in page.locator(".plot").all():
        box = plot.locator(".main-svg").first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    ink = page.evaluate("document.getElementById('curves').layout.font.color")
    assert ink == ("#e6edf3" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "#1f2328")

    assert rows(page) == ["3", "1", "2", "0", "5", "4"]
    page.locator("#filter-0").select_option("0.01")
    assert rows(page) == ["3", "2"] and {trace[0] for trace in traces(page)} == {"3", "2"}
    assert "2 of 6 runs" in page.locator("#filter-count").inner_text()
    page.locator("#filter-0").select_option("")
    page.locator("#filter-status").select_option("diverged")
    assert rows(page) == ["4"]
    page.locator("#filter-status").select_option("")

    heads = page.locator("table", has=page.locator("tr[data-run]")).locator("th button")
    heads.get_by_text("weight decay").click()
    assert rows(page) == ["2", "0", "4", "3", "1", "5"], "equals keep their order"
    heads.get_by_text("val loss").click()
    assert rows(page) == ["3", "1", "2", "0", "5", "4"], "what is missing stays last"

    assert page.locator("#cut").is_hidden(), "few values are all within the picture"
    assert page.evaluate("document.getElementById('curves')._fullLayout.yaxis.range[1]") >= 7
    steps = {trace[0]: trace[2] for trace in traces(page)}["3"]
    page.get_by_text("by tokens").click()
    assert {trace[0]: trace[2] for trace in traces(page)}["3"] == [600 * step for step in steps]
    page.get_by_label("log y").check()
    assert page.evaluate("document.getElementById('curves').layout.yaxis.type") == "log"
    before = {trace[0]: trace[3] for trace in traces(page) if len(trace[2]) == 4}["3"]
    page.get_by_label("smoothing").fill("1")
    after = {trace[0]: trace[3] for trace in traces(page) if len(trace[2]) == 4}["3"]
    assert before == [6, 5, 4, 3] and after == pytest.approx([6, (0.9 * 6 + 5) / 1.9, 4.92989, 4.36871], rel=1e-4)
    page.get_by_text("learning rate", exact=True).last.click()

    page.get_by_text("parallel coordinates", exact=True).click()
    page.get_by_text("slices", exact=True).click()
    assert page.evaluate("document.getElementById('search').data.length") == 2
    low, high = page.evaluate("document.getElementById('search')._fullLayout.yaxis.range")
    assert low < 3.0 < 4.0 < high < 5, "the losses fill the picture, whichever was there before"
    page.get_by_text("map", exact=True).click()


def test_a_page_that_loads_itself_again_keeps_what_was_chosen(browser, tmp_path):
    runs = [write_run(tmp_path / str(n), f"optimizer.lr={n + 1}", loss=3.0 + n) for n in range(3)]
    write_page(collect(runs), tmp_path / "report.html", runs, {}, refresh=1)
    page = new_page(browser)
    page.goto((tmp_path / "report.html").as_uri())
    page.evaluate("window.before = true")
    page.locator("#filter-0").select_option("2")
    page.get_by_label("log y").check()
    page.get_by_text("by tokens").click()
    page.locator("summary").click()
    for _ in range(2):
        page.locator("table.sortable th button").get_by_text("val loss").click()
    page.wait_for_function("!window.before && document.getElementById('curves')?.data", timeout=60_000)
    assert rows(page) == ["1"] and page.get_by_label("log y").is_checked()
    assert page.locator("details").get_attribute("open") == ""
    assert page.get_by_label("by tokens").is_checked() and {trace[0] for trace in traces(page)} == {"1"}
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("val loss")
    page.close()


def test_curves_of_two_objectives_are_apart(browser, tmp_path):
    for objective in ("clm", "mlm"):
        write_run(tmp_path / objective, f"objective={objective}", "model=bert-tiny", loss=3.0)
    report([tmp_path / "clm", tmp_path / "mlm"], tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.goto((tmp_path / "report.html").as_uri())
    assert {trace[0] for trace in traces(page)} == {"clm"}
    page.get_by_text("loss (nats per masked token)", exact=True).click()
    assert {trace[0] for trace in traces(page)} == {"mlm"}
    page.get_by_text("learning rate", exact=True).last.click()
    page.get_by_text("tokens per second", exact=True).click()
    assert {trace[0] for trace in traces(page)} == {"clm", "mlm"}, "what means the same is drawn together"
    assert rows(page) == ["clm", "mlm"]
    page.close()


def test_the_legend_switches_a_run_off(browser, address):
    page = new_page(browser)
    page.goto(address)
    page.locator("#curves .legendtoggle").first.click()
    page.wait_for_function("document.getElementById('curves').data.some(t => t.visible === 'legendonly')")
    hidden = {trace[0] for trace in traces(page) if trace[1] == "legendonly"}
    assert hidden == {"3"}, "training and validation of the run that is named there"
    page.get_by_label("log x").check()
    assert {trace[0] for trace in traces(page) if trace[1] == "legendonly"} == {"3"}, "it stays off"
    page.close()
