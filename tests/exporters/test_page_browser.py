"""The page in a real browser: nothing is fetched, nothing fails, it sorts and opens, and it fits every screen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import CONFIG, HOSTILE, PROVENANCE, full, network, renamed

from exporters import bundle
from exporters.report.page import render

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no browser: install the Debian packages chromium and chromium-driver",
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
WIDE, PHONE = (1280, 900), (360, 740)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: `uv sync` installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    reports = {"full": full(), "hostile": renamed(full())}
    for name, report in reports.items():
        text = render(report, network(report), CONFIG, PROVENANCE)
        (folder / f"{name}.html").write_bytes(bundle.PAGE_BEGINNING + text.encode())
    return {name: folder / f"{name}.html" for name in reports}


def opened(browser: Any, page: Path, size: tuple[int, int] = WIDE, scheme: str = "light", scripts: bool = True) -> None:
    for log in ("browser", "performance"):
        browser.get_log(log)
    # A click waits for no scrolling.
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get("about:blank")
    browser.get(page.as_uri())


def requests(browser: Any) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    return {url for url in sent if not url.startswith("data:")}


def column(browser: Any, index: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#layer-table tbody tr')].map(row => row.cells[arguments[0]].innerText)"
    )
    return [text.strip() for text in browser.execute_script(script, index)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("name", ["full", "hostile"])
def test_it_shows_without_an_error_or_a_request_and_fits(
    name: str, size: tuple[int, int], scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    opened(browser, pages[name], size, scheme)
    assert browser.execute_script("return document.compatMode") == "CSS1Compat"
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    width = "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
    whole, body, screen = browser.execute_script(width)
    assert screen == size[0]
    assert max(whole, body) <= screen
    assert browser.get_log("browser") == []
    assert requests(browser) == {pages[name].as_uri()}
    ground, ink = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert abs(brightness[0] - brightness[1]) > 400


def test_text_is_told_from_its_ground_in_light_and_dark(browser: Any, pages: dict[str, Path]) -> None:
    """Contrast by WCAG 2.1, 1.4.3: 4.5 for text, of every class that has a colour of its own."""
    script = """
    const luminance = (colour) => {
      const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const colour = getComputedStyle(at).backgroundColor;
        if (!/, 0\\)$/.test(colour) && colour.startsWith("rgb(")) return luminance(colour);
      }
    };
    const told = [...document.querySelectorAll("p, h1, h2, h3, a[href], th, td, summary, figcaption, dt, dd, li, code")]
      .filter((one) => one.innerText && one.innerText.trim())
      .map((one) => [luminance(getComputedStyle(one).color), ground(one), one.outerHTML.slice(0, 80)])
      .map(([x, y, what]) => [(Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05), what]);
    return [told.length, told.filter(([contrast]) => !(contrast >= 4.5))];
    """
    for scheme in ("light", "dark"):
        opened(browser, pages["full"], scheme=scheme)
        looked_at, faint = browser.execute_script(script)
        assert looked_at > 100
        assert faint == []


def test_columns_sort_by_number_and_back(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["full"])
    heads = browser.find_elements("css selector", "#layer-table thead button")
    heading = [head.text.strip(" ↕") for head in heads]
    neurons = heading.index("neurons")
    assert column(browser, neurons) == ["1,024 (2 copies)", "3", "10"]
    heads[neurons].click()
    assert column(browser, neurons) == ["3", "10", "1,024 (2 copies)"]
    heads[neurons].click()
    assert column(browser, neurons) == ["1,024 (2 copies)", "10", "3"]
    heads[0].click()
    assert column(browser, 0) == ["conv|1", "fc", "silent"]
    sorted_by = browser.find_elements("css selector", "#layer-table [aria-sort]")
    assert [(head.text.strip(" ↑"), head.get_attribute("aria-sort")) for head in sorted_by] == [("layer", "ascending")]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("link", ["#layer-table tbody a", ".graph a[href='#layer-0']"], ids=["table", "graph"])
def test_a_click_on_a_layer_opens_its_details(link: str, browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["full"])
    details = browser.find_element("css selector", "details.layer")
    assert details.get_attribute("open") is None
    browser.find_element("css selector", link).click()
    webdriver_wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    webdriver_wait(browser, 5).until(lambda _: details.get_attribute("open"))
    pictures = details.find_elements("css selector", "figure svg")
    assert [picture.is_displayed() for picture in pictures] == [True] * 3
    assert all(picture.size["width"] > 150 for picture in pictures)
    assert browser.get_log("browser") == []


def test_it_is_read_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["full"], scripts=False)
    try:
        assert browser.find_elements("css selector", "thead button") == []
        browser.find_element("css selector", "details.layer summary").click()
        assert browser.find_element("css selector", "details.layer .facts").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_hostile_names_are_shown_and_run_nothing(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["hostile"])
    assert browser.title == f"{HOSTILE[0]} as a spiking network"
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [1, 0]
    assert column(browser, 0) == [" ".join(name.split()) for name in HOSTILE]
    browser.find_element("css selector", "#layer-table tbody a").click()
    assert browser.title == f"{HOSTILE[0]} as a spiking network"
    assert browser.get_log("browser") == []


def test_even_what_would_get_through_may_not_run(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """The page's own policy is a second wall behind the escaping."""
    broken = (
        pages["full"].read_text().replace("<main>", f"<main>{HOSTILE[0]}<img src=x onerror=\"document.title='taken'\">")
    )
    (tmp_path / "broken.html").write_text(broken)
    opened(browser, tmp_path / "broken.html")
    assert browser.title == "tiny as a spiking network"
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len([message for message in refused if "Content Security Policy" in message]) >= 2
