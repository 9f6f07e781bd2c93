"""The report in Chromium, from disk: without network, by keyboard, light and dark, and before axe."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import run
from tests.report_searches import HOSTILE, write_journal, write_search
from tune_inat.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402 (only where there is selenium)
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DRAWN = "return [...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('svg')).length"
WAIT_SECONDS = 20.0

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None, reason="chromium or chromedriver is not installed"
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_search(tmp_path_factory.mktemp("runs") / "<b>it's</b>", 24, 4))


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "axe-core"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"npm cannot install axe-core: {installed.stderr[-300:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


def wait_for(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not claim():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def show(browser: Any, page: Path, *, scheme: str = "light", width: int = 1280) -> None:
    """Open a page and have all of its charts drawn."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before is forgotten
    browser.get(page.as_uri())
    n_charts = len(browser.find_elements(By.CSS_SELECTOR, ".plot"))
    for plot in browser.find_elements(By.CSS_SELECTOR, ".plot"):
        browser.execute_script("arguments[0].scrollIntoView()", plot)
        time.sleep(0.05)
    wait_for(lambda: browser.execute_script(DRAWN) == n_charts)
    browser.execute_script("scrollTo(0, 0)")


def column(browser: Any, title: str) -> list[str]:
    """The cells of a column of the leaderboard that are to be seen."""
    script = """
        const table = document.getElementById("leaderboard-table");
        const place = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === arguments[0]);
        const rows = [...table.tBodies[0].rows].filter((row) => row.offsetParent !== null);
        return rows.map((row) => row.cells[place].textContent);
    """
    cells: list[str] = browser.execute_script(script, title)
    return cells


def head(browser: Any, title: str) -> WebElement:
    heads = browser.find_elements(By.CSS_SELECTOR, "#leaderboard-table th button")
    found: WebElement = next(button for button in heads if button.get_attribute("textContent") == title)
    return found


def requests(browser: Any) -> list[str]:
    """Each address that was asked for since the page was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def test_page_is_alone_and_without_an_error(browser: Any, report: Path) -> None:
    show(browser, report)
    asked = requests(browser)
    assert report.as_uri() in asked
    assert all(url == report.as_uri() or url.startswith(("data:", "blob:")) for url in asked)
    assert browser.get_log("browser") == []


def test_hostile_names_do_nothing(browser: Any, report: Path) -> None:
    show(browser, report)
    assert (
        browser.execute_script("return document.querySelectorAll('img[onerror], header b, td script').length")
        == 0
    )
    assert HOSTILE in browser.find_element(By.TAG_NAME, "body").text
    ticks = browser.execute_script("return document.getElementById('confusion-matrix-plot').textContent")
    assert HOSTILE in ticks  # an alert would have made this call fail


def test_leaderboard_is_sorted_by_keyboard(browser: Any, report: Path) -> None:
    show(browser, report)
    button = head(browser, "lr")
    browser.execute_script("arguments[0].focus()", button)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    rising = [float(cell) for cell in column(browser, "lr")]
    assert rising == sorted(rising)
    assert len(set(rising)) == 24
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert [float(cell) for cell in column(browser, "lr")] == rising[::-1]
    states = [
        h.get_attribute("aria-sort")
        for h in browser.find_elements(By.CSS_SELECTOR, "#leaderboard-table thead th")
    ]
    assert sorted(set(states)) == ["descending", "none"]
    assert states.count("descending") == 1


def test_heads_can_be_reached_by_tab_and_show_their_focus(browser: Any, report: Path) -> None:
    show(browser, report)
    box = browser.find_element(By.CSS_SELECTOR, "input[data-filters=leaderboard-table]")
    browser.execute_script("arguments[0].focus()", box)
    box.send_keys(Keys.TAB, Keys.NULL)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("textContent") == "rank"
    assert float(focused.value_of_css_property("outline-width").removesuffix("px")) >= 2


def test_leaderboard_is_filtered_by_every_word(browser: Any, report: Path) -> None:
    show(browser, report)
    box = browser.find_element(By.CSS_SELECTOR, "input[data-filters=leaderboard-table]")
    box.send_keys("STOPPED sgd")
    assert set(column(browser, "status")) == {"STOPPED"}
    assert set(column(browser, "optimizer")) == {"sgd"}
    n = len(column(browser, "rank"))
    assert 0 < n < 24
    assert browser.find_element(By.ID, "leaderboard-table-count").text == f"{n} of 24 rows"
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    assert len(column(browser, "rank")) == 24


def test_charts_follow_the_scheme(browser: Any, report: Path) -> None:
    def colours() -> list[str]:
        script = """
            const tick = document.querySelector('#curves-plot .xtick text');
            return [getComputedStyle(document.body).backgroundColor, tick ? getComputedStyle(tick).fill : ""];
        """
        found: list[str] = browser.execute_script(script)
        return found

    show(browser, report, scheme="light")
    assert colours() == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]  # --page and --text of report.css
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    wait_for(lambda: colours() == ["rgb(20, 23, 27)", "rgb(232, 234, 237)"])


def test_page_is_no_wider_than_a_telephone(browser: Any, report: Path) -> None:
    show(browser, report, width=400)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400


def test_charts_shrink_with_the_window(browser: Any, report: Path) -> None:
    show(browser, report, width=900)
    measure = "addEventListener('resize', () => { widest = document.documentElement.scrollWidth; })"
    browser.execute_script(f"window.widest = 0; {measure}")  # before plotly follows
    screen = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wait_for(lambda: browser.execute_script("return widest") > 0)
    assert browser.execute_script("return widest <= innerWidth")
    as_wide_as_their_place = """
        return [...document.querySelectorAll(".plot")].every(
            (plot) => plot.querySelector("svg").clientWidth === plot.clientWidth)
    """
    wait_for(lambda: browser.execute_script(as_wide_as_their_place))
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_print_has_every_chart_in_light_colours(browser: Any, report: Path) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(report.as_uri())
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    wait_for(lambda: browser.execute_script(DRAWN) == len(browser.find_elements(By.CSS_SELECTOR, ".plot")))
    assert (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_nothing_serious(browser: Any, report: Path, axe: str, scheme: str, width: int) -> None:
    show(browser, report, scheme=scheme, width=width)
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert found["passes"]
    serious = [
        (problem["id"], [node["html"][:200] for node in problem["nodes"][:3]])
        for problem in found["violations"]
        if problem["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_command_writes_the_page_and_names_it(browser: Any, hostile_path: Path, own_cache: Path) -> None:
    write_journal(hostile_path, 5)
    ran = run("report", hostile_path, cwd=hostile_path, cache=own_cache)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.strip() == str(hostile_path / "report.html")
    show(browser, hostile_path / "report.html")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["none", "."])
def test_command_refuses_what_is_no_search(tmp_path: Path, own_cache: Path, name: str) -> None:
    ran = run("report", name, cwd=tmp_path, cache=own_cache)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert "Traceback" not in ran.err
