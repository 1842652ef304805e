"""The report in a browser without a network: genes are picked, opacity moved, by mouse and keys, in light and dark."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SMALL = {
    "encoder": "mobilenetv2_035",
    "filters": (8, 8, 12, 16),
    "window_px": 256,
    "core_px": 512,
    "halo_px": 256,
    "context_rank": 0,
}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that has no network, and says what scripts write to its console."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--force-prefers-reduced-motion")  # pages that scroll slowly are clicked beside
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def slide():
    """A toy section with layer and map of a PixNet that was trained for one epoch on another, and its outline."""
    import stpredict as stp

    train, slide = stp.datasets.toy(2, seed=3, size_um=600.0, n_genes=30)
    config = stp.models.PixNetConfig(genes=tuple(stp.pp.gene_panel([train], n_genes=6)), mpp=1.0, **SMALL)
    model = stp.models.PixNet(config=config)
    run = {"device": "cpu", "precision": "32", "progress": False}
    stp.tl.train(train, model, shapes_key="spots", val=0.2, max_epochs=1, batch_size=4, **run)
    stp.tl.predict(slide, model, shapes_key="spots", tissue_key="tissue", output="both", **run)
    return slide


@pytest.fixture(scope="module")
def page(slide, tmp_path_factory) -> Path:
    import stpredict as stp

    return stp.tl.report(slide, "pixnet", path=tmp_path_factory.mktemp("page") / "report.html", tissue_key="tissue")


@pytest.fixture
def opened(browser, page):
    """The browser with the report, just opened."""
    go_to(browser, page)
    yield browser
    assert browser.get_log("browser") == []


def go_to(browser, page: Path) -> None:
    browser.set_window_size(1400, 1000)
    browser.get(page.as_uri())
    wait(browser, "document.body.dataset.gene !== undefined")


def wait(browser, condition: str) -> None:
    """Until a condition of JavaScript holds and what it draws is drawn."""
    script = """
        const done = arguments[0], start = performance.now();
        (function look() {
            if (CONDITION || performance.now() - start > 8000)
                requestAnimationFrame(() => requestAnimationFrame(() => done(Boolean(CONDITION))));
            else setTimeout(look, 20);
        })();"""
    assert browser.execute_async_script(script.replace("CONDITION", f"({condition})")), condition


def pixels(browser, side: str) -> np.ndarray:
    """What a picture shows, (y, x, 4)."""
    wait(browser, "true")
    text = browser.execute_script(f"return document.getElementById('canvas-{side}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))))


def keys(browser, where: str, text: str) -> None:
    browser.find_element("css selector", where).send_keys(text)


def drawn(page: Path) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found[1])


def check_picker(browser, page: Path) -> None:
    """Searching for a gene, and clicking one in the list, changes the name and both pictures."""
    genes = drawn(page)["genes"]
    go_to(browser, page)
    first = [pixels(browser, side) for side in ("left", "right")]
    keys(browser, "#search", genes[3])
    wait(browser, f"document.body.dataset.gene === {json.dumps(genes[3])}")
    assert browser.find_element("id", "gene-name").text == genes[3]
    found = [pixels(browser, side) for side in ("left", "right")]
    assert all((one != two).any() for one, two in zip(first, found, strict=True))
    browser.execute_script(
        "const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input'))"
    )
    browser.find_element("css selector", "#genes li[data-i='0']").click()
    wait(browser, f"document.body.dataset.gene === {json.dumps(genes[0])}")
    assert all((one == pixels(browser, side)).all() for one, side in zip(first, ("left", "right"), strict=True))


def test_a_gene_is_picked_by_search_and_by_click(browser, page):
    check_picker(browser, page)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(
    "part",
    ["    state.gene = i;\n", "    load();\n    drawRanking();\n", "    if (item) pick(Number(item.dataset.i));\n"],
)
def test_a_broken_picker_is_found(browser, page, part, tmp_path):
    """The test above sees it when picking sets no gene, draws nothing, or the list takes no click."""
    text, broken = page.read_text(), tmp_path / "broken.html"
    assert text.count(part) == 1
    broken.write_text(text.replace(part, ""))
    with pytest.raises(AssertionError):
        check_picker(browser, broken)
    assert browser.get_log("browser") == []


def test_opacity_uncovers_the_image(opened):
    wait(opened, "document.getElementById('opacity-value').textContent === '70 %'")
    covered = pixels(opened, "left")
    choose(opened, "right", "plain")
    plain = pixels(opened, "right")
    assert (covered != plain).any()
    opened.execute_script(
        "const o = document.getElementById('opacity'); o.value = 0; o.dispatchEvent(new Event('input'))"
    )
    wait(opened, "document.getElementById('opacity-value').textContent === '0 %'")
    assert (pixels(opened, "left") == plain).all()


def choose(browser, side: str, source: str) -> None:
    browser.execute_script(
        f"const s = document.getElementById('{side}'); s.value = '{source}'; s.dispatchEvent(new Event('change'))"
    )


def test_a_spot_has_the_colour_of_its_value(opened, page):
    """Without transparency the middle of the largest measured spot is the last colour of the map, by matplotlib."""
    from matplotlib import colormaps

    data = drawn(page)
    opened.execute_script(
        "const o = document.getElementById('opacity'); o.value = 100; o.dispatchEvent(new Event('input'));"
        "document.getElementById('shared').click(); document.getElementById('outline').click()"
    )
    choose(opened, "right", "measured")
    picture = pixels(opened, "right")
    levels = np.frombuffer(base64.b64decode(data["measured"]["columns"][0]), np.uint8)
    low, high = data["measured"]["low"][0], data["measured"]["high"][0]
    scale = opened.execute_script("return document.getElementById('canvas-right').width") / data["image"]["width"]
    for k in np.flatnonzero(levels < 255)[::5]:
        value = low + (high - low) * levels[k] / 254
        start, stop = data["measured"]["range"][0]
        share = np.clip((value - start) / (stop - start), 0, 1)
        wanted = np.array(colormaps["viridis"](int(np.floor(255 * share + 0.5)))[:3]) * 255
        y, x = round(data["shapes"]["y"][k] * scale), round(data["shapes"]["x"][k] * scale)
        assert np.abs(picture[y, x, :3] - wanted.round()).max() <= 1


def test_it_works_by_keys(opened, page):
    genes = drawn(page)["genes"]
    keys(opened, "body", "j")
    wait(opened, f"document.body.dataset.gene === {json.dumps(genes[1])}")
    keys(opened, "body", "k")
    wait(opened, f"document.body.dataset.gene === {json.dumps(genes[0])}")
    keys(opened, "body", "/")
    wait(opened, "document.activeElement.id === 'search'")
    keys(opened, "#search", "\ue015\ue015")  # down, twice
    wait(opened, f"document.body.dataset.gene === {json.dumps(genes[2])}")
    keys(opened, "#search", "\ue00c")  # escape
    before = pixels(opened, "left")
    keys(opened, "body", "o")
    assert (pixels(opened, "left") != before).any()
    keys(opened, "body", "o")
    assert (pixels(opened, "left") == before).all()
    keys(opened, "body", "+")
    closer = pixels(opened, "left")
    assert (closer != before).any()
    opened.find_element("id", "canvas-left").send_keys("\ue014")  # right
    assert (pixels(opened, "left") != closer).any()
    keys(opened, "body", "0")
    assert (pixels(opened, "left") == before).all()


def test_light_and_dark(opened):
    def shade() -> float:
        colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        return float(np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]))

    assert shade() > 200
    keys(opened, "body", "t")
    assert shade() < 60
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    opened.refresh()
    wait(opened, "document.body.dataset.gene !== undefined")
    assert shade() < 60
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_values_are_read_under_the_pointer(opened, page):
    from selenium.webdriver.common.action_chains import ActionChains

    data = drawn(page)
    canvas = opened.find_element("id", "canvas-right")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    scale = canvas.size["width"] / data["image"]["width"]
    levels = np.frombuffer(base64.b64decode(data["measured"]["columns"][0]), np.uint8)
    k = int(np.flatnonzero(levels < 255)[0])
    value = data["measured"]["low"][0] + (data["measured"]["high"][0] - data["measured"]["low"][0]) * levels[k] / 254
    x = data["shapes"]["x"][k] * scale - canvas.size["width"] / 2
    y = data["shapes"]["y"][k] * scale - canvas.size["height"] / 2
    ActionChains(opened).move_to_element_with_offset(canvas, x, y).perform()
    wait(opened, "document.getElementById('readout').textContent.includes('measured')")
    said = opened.find_element("id", "readout").text
    assert f"measured {value:.3f}" in said and data["genes"][0] in said


def test_the_table_sorts_filters_and_picks(opened, page):
    genes = drawn(page)["table"]["gene"]
    opened.find_element("css selector", "#table th[data-name='gene'] button").click()

    def rows() -> list[str]:
        return [row.get_attribute("data-gene") for row in opened.find_elements("css selector", "#table tbody tr")]

    assert rows() == sorted(genes)
    rows_of = opened.find_elements("css selector", "#table tbody tr button")
    opened.execute_script("arguments[0].click()", rows_of[-1])
    wait(opened, f"document.body.dataset.gene === {json.dumps(sorted(genes)[-1])}")
    keys(opened, "#filter", genes[2])
    assert rows() == [genes[2]]


@pytest.mark.parametrize("width", [420, 800])
def test_a_narrow_window_needs_no_scrolling_aside(opened, width):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 2, "mobile": False}
    )
    wait(opened, "true")
    wide, inner = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    shown = pixels(opened, "left")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert inner == width and wide <= width
    assert (shown[..., 3] == 255).mean() > 0.9  # the picture fills its canvas
