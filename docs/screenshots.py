"""Screenshots of a run for the docs: TensorBoard's first page and custom scalars, and the report.

python docs/screenshots.py RUN

It writes tensorboard.png, custom-scalars.png and report.png beside itself; it needs Chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

COLOURS = 64  # of a palette: a third of the size


def main() -> None:
    run, docs = Path(sys.argv[1]), Path(__file__).parent
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    command = [Path(sys.executable).parent / "tensorboard", "--logdir", run, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    address = next(
        found[0] for line in server.stderr if (found := re.search(r"http://localhost:\d+/", line))
    )
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 760})
            for tab, sign, name in (
                ("", "GVA/", "tensorboard"),
                ("custom_scalars", "Matches (", "custom-scalars"),
            ):
                page.goto(f"{address}#{tab}")
                page.reload()
                page.get_by_text(sign).first.wait_for()
                page.wait_for_timeout(4000)  # the images and curves come after their titles
                _save(page, docs / f"{name}.png")
            page.goto((run / "report.html").resolve().as_uri())
            _save(page, docs / "report.png")
    finally:
        server.kill()


def _save(page: Page, path: Path) -> None:
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
