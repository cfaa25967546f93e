"""TensorBoard and the report as a person sees them: in Chromium, headless."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from stab.reports.live import Live
from stab.run.plan import make_config

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = importlib.util.find_spec("playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
    ),
    pytest.mark.skipif(DRIVER is None, reason="no playwright: pip install '.[dev]'"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


def serve(logdir, *more):
    """Start TensorBoard on a free port; return its process and address."""
    process = subprocess.Popen(
        [Path(sys.executable).parent / "tensorboard", "--logdir", logdir, "--port", "0", *more],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:  # of which there are few
        if found := re.search(r"http://localhost:\d+/", line):
            return process, found[0]
    raise AssertionError("TensorBoard ended")


@pytest.fixture(scope="module")
def tensorboard(tiny_run):
    process, address = serve(tiny_run)
    yield address
    process.kill()


@pytest.fixture(scope="module")
def leaderboard(tiny_run):
    return json.loads((tiny_run / "leaderboard.json").read_text())


@pytest.fixture
def tab(browser, tensorboard):
    """Open a tab of TensorBoard; it must come without an error of the page."""
    pages = []

    def show(name):
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.on("pageerror", lambda error: pytest.fail(f"{name}: {error}"))
        pages.append(page)
        page.goto(f"{tensorboard}#{name}")
        return page

    yield show
    for page in pages:
        page.close()


def sees(page, text, **options):
    page.get_by_text(text, **options).first.wait_for(timeout=30_000)


def test_it_opens_on_the_leaderboard(tab):
    page = tab("")
    sees(page, "GVA/hopper")
    first, other = (
        page.get_by_text(text).first.bounding_box() for text in ("GVA/hopper", "hopper/curves")
    )
    assert first["y"] < 600
    assert other is None or first["y"] < other["y"]


def test_text_is_the_leaderboard_with_its_names_and_numbers(tab, leaderboard):
    page = tab("text")
    sees(page, "GVA/hopper/text_summary", exact=True)
    lines = page.locator("table tr").filter(has_not=page.locator("table"))
    lines.nth(len(leaderboard["entries"])).wait_for(timeout=30_000)
    rows = [" ".join(row.split()) for row in lines.all_inner_texts()]
    for entry, row in zip(
        leaderboard["entries"], rows[-len(leaderboard["entries"]) :], strict=True
    ):
        mark = "" if entry["status"] == "ranked" else f" ({entry['status']})"
        assert row.startswith(f"{entry['rank'] or '–'} {entry['stabilizer']}{mark} ")
        assert f" {entry['gva']:.3f} " in row
        assert f"{entry['return']:.2f}" in row


def test_images_are_the_figures(tab, tiny_run):
    page = tab("images")
    sees(page, "GVA/hopper", exact=True)
    page.locator("tf-image-loader img, img#main-image, .image-cell img, img").first.wait_for(
        timeout=30_000
    )
    shown = [
        page.evaluate("i => i.naturalWidth", image)
        for image in page.locator("img").element_handles()
    ]
    assert max(shown) >= 1000  # as it was drawn: 7 inches at 150 dpi
    for path in (tiny_run / "figures").glob("hopper-*.png"):
        kind = path.stem.removeprefix("hopper-")
        if kind != "leaderboard":
            sees(page, f"tag: hopper/{kind}")


def test_custom_scalars_have_all_stabilizers_in_one_chart(tab, leaderboard):
    page = tab("custom_scalars")
    for title in ("return", "jump of the return between checkpoints", "validation loss"):
        sees(page, title, exact=True)
    names = {entry["stabilizer"] for entry in leaderboard["entries"]}
    sees(page, f"Matches ({len(names)})")
    for name in names:
        sees(page, f"tensorboard/{name}")


def test_hparams_has_the_names(tab, leaderboard):
    page = tab("hparams")
    for _ in range(
        8
    ):  # it looks once: before TensorBoard has read the files there is nothing to see
        if page.get_by_text("Trial ID").first.is_visible():
            break
        page.wait_for_timeout(5_000)
        if not page.get_by_text("Trial ID").first.is_visible():
            page.reload()
            page.wait_for_timeout(5_000)
    sees(page, "Trial ID")
    for head in ("stabilizer", "schedule", "dropout"):
        sees(page, head)
    for entry in leaderboard["entries"]:
        sees(page, entry["stabilizer"], exact=True)


def points(address, run, tag):
    """What TensorBoard's server has of a scalar: step -> value."""
    url = f"{address}data/plugin/scalars/scalars?run={run}&tag={tag}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {step: value for _, step, value in json.load(answer)}
    except urllib.error.HTTPError:
        return {}


def test_the_curves_grow_while_a_comparison_runs(tmp_path):
    config, _ = make_config("cliff", "ema")
    shown = Live(tmp_path, config)

    def come(seed, values):
        cell = {
            "task": "cliff",
            "seed": seed,
            "checkpoints": {
                "ema": [{"update": 10 * (k + 1), "val_loss": 1.0} for k in range(len(values))]
            },
            "rows": [
                {"stabilizer": "ema", "update": 10 * (k + 1), "return": v}
                for k, v in enumerate(values)
            ],
        }
        shown._show(shown._take(cell))

    come(0, [0.25, 0.5])
    process, address = serve(tmp_path, "--reload_interval", "1")

    def becomes(wanted):
        end = time.monotonic() + 40
        while (
            found := points(address, "tensorboard/ema", "cliff/return")
        ) != wanted and time.monotonic() < end:
            time.sleep(0.3)
        assert found == wanted

    try:
        becomes({10: 0.25, 20: 0.5})
        come(0, [0.25, 0.5, 0.75])
        becomes({10: 0.25, 20: 0.5, 30: 0.75})
        come(1, [0.75, 1.0])  # another seed: the mean, and nothing of the old curve
        becomes({10: 0.5, 20: 0.75, 30: 0.75})
    finally:
        process.kill()
        shown.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_and_says_nothing_on_the_console(
    browser, tiny_run, leaderboard, width, scheme
):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tiny_run / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    text = page.locator("body").inner_text()
    for entry in leaderboard["entries"]:
        assert entry["stabilizer"] in text
        assert f"{entry['gva']:.3f}" in text
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
    broken = page.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0
    page.close()


def test_the_report_s_table_is_sorted_by_a_click(browser, tiny_run, leaderboard):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((tiny_run / "report.html").as_uri())
    table = page.locator("table").filter(has=page.locator("th button")).first
    ranked = [e for e in leaderboard["entries"] if e["rank"]]

    def names():
        rows = table.locator("tbody").first.locator("tr").all_inner_texts()
        return [
            next(e["stabilizer"] for e in ranked if e["stabilizer"] in row.split()) for row in rows
        ]

    assert names() == [e["stabilizer"] for e in ranked]
    button = table.locator("th button", has_text="return").first
    button.click()
    up = names()
    button.click()
    down = names()
    values = {e["stabilizer"]: e["return"] for e in ranked}
    assert len(set(values.values())) == len(values) > 3
    assert sorted(values, key=values.get) in (up, down)
    assert up == down[::-1]
    page.close()


def test_the_report_is_whole_without_scripts(browser, tiny_run, leaderboard):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tiny_run / "report.html").as_uri())
    assert all(entry["stabilizer"] in page.content() for entry in leaderboard["entries"])
    assert page.locator("img").count() >= 5
    context.close()
