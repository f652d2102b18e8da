"""The pictures of docs/dashboard.md: each view of a sweep's page in a real browser, and the page as one file.

python benchmarks/sweep_pictures.py runs/quickstart-sweep docs/dashboard

It needs the extra `dashboard`, playwright and a Chromium (`apt-get install chromium`).
"""

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from backbone.sweep.record import read
from backbone.sweep.view.panels import panels

JOB = Path(__file__).parents[1] / "jobs/dashboard.py"
WIDE, NARROW = 1280, 390  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("sweep", help="folder of a sweep")
    words.add_argument("output", type=Path, help="folder of the pictures")
    args = words.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser here: none of {', '.join(BROWSERS)}; apt-get install chromium")
    record = read(args.sweep)
    args.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play, serving(args.sweep) as address:
        # parallel coordinates need WebGL
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        page = opened.new_page(viewport={"width": WIDE, "height": 900})
        page.goto(address)
        page.locator("[data-testid=stDataFrame] canvas").first.wait_for(timeout=120_000)
        take(page, args.output / "trials.png")
        tab = page.locator(".st-key-view")
        tab.get_by_role("radio", name="Compare", exact=True).click()
        take(page, args.output / "compare.png")
        for view in panels(record):
            tab.get_by_role("radio", name=view.tab, exact=True).click()
            page.get_by_role("heading", name=view.title, exact=True).wait_for()
            if view.draw(record) is not None:
                page.locator(f".st-key-figure-{view.key} .js-plotly-plot").wait_for()
            take(page, args.output / f"{view.tab.lower().replace(' ', '-')}.png")
        phone = opened.new_page(viewport={"width": NARROW, "height": 844}, color_scheme="dark")
        phone.goto(address)
        phone.locator("[data-testid=stDataFrame] canvas").first.wait_for(timeout=120_000)
        phone.wait_for_timeout(2000)
        phone.screenshot(path=args.output / "phone.png")
        written = args.output / "report.html"
        subprocess.run([sys.executable, JOB, args.sweep, "--html", written], check=True)
        report = opened.new_page(viewport={"width": WIDE, "height": 1600})
        report.goto(written.absolute().as_uri())
        report.wait_for_timeout(4000)
        report.screenshot(path=args.output / "report.png")
        written.unlink()
        opened.close()


def take(page: Any, file: Path) -> None:
    """The whole of the page, which scrolls within a frame of its own."""
    page.set_viewport_size({"width": WIDE, "height": 900})
    page.wait_for_timeout(1500)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": WIDE, "height": min(height, 1600)})
    page.wait_for_timeout(1500)
    page.screenshot(path=file)


@contextlib.contextmanager
def serving(sweep: str) -> Generator[str]:
    """The address of the page of a sweep."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, JOB, sweep, "--port", str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(100)


if __name__ == "__main__":
    main()
