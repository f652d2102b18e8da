"""`python jobs/dashboard.py` as a person meets it: in a real browser, while a sweep goes on."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone.sweep.record import Record, read
from backbone.sweep.view.compare import COLOURS, differences, first_choice
from backbone.sweep.view.panels import panels
from tests.backbone.sweep.conftest import STEPS, make_record, make_trial, write_runs

CLIPPED = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width || !box.height) return false;
  for (let p = e; p; p = p.parentElement) if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  const cut = style.overflowX === 'hidden' && style.textOverflow === 'ellipsis' && e.scrollWidth > e.clientWidth + 1;
  return cut || box.right > document.documentElement.clientWidth + 1;
}).map(e => `${e.tagName} ${e.textContent.slice(0, 40)}`)"""
"""What is wider than the window, or than a box that hides the rest, and cannot be scrolled to."""

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
Run = Callable[..., subprocess.CompletedProcess]


def browser_path() -> str:
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    return found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        words = ["--no-sandbox", "--enable-unsafe-swiftshader"]  # parallel coordinates need WebGL
        opened = playwright.chromium.launch(executable_path=browser_path(), args=words)
        yield opened
        opened.close()


class Witness:
    """A page, what it complained of and where it went."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))

    def close(self, home: tuple[str, ...]) -> None:
        """Assert that nothing went wrong, and nothing left this machine."""
        self.context.close()
        assert self.errors == []
        assert self.requests
        assert [url for url in self.requests if not url.startswith((*home, "data:", "blob:"))] == []

    def table(self) -> list[list[str]]:
        """The lines of the live page's trials table, as screen readers get them."""
        rows = self.page.evaluate(
            "[...document.querySelectorAll('[data-testid=stDataFrame] canvas [role=row]')]"
            ".map(row => [...row.children].map(cell => cell.textContent))"
        )
        return rows[1:]

    def choose(self, view: str) -> None:
        self.page.locator(".st-key-view").get_by_role("radio", name=view, exact=True).click()

    def drawn(self, key: str) -> list[dict[str, Any]]:
        """What Plotly holds of a figure."""
        plot = self.page.locator(f".st-key-{key} .js-plotly-plot")
        plot.wait_for()
        return plot.evaluate("plot => JSON.parse(JSON.stringify(plot.data))")


@contextlib.contextmanager
def serving(url: str) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, "STREAMLIT_SERVER_ADDRESS": "0.0.0.0"}  # the job's own choice wins
    words = [sys.executable, "jobs/dashboard.py", url, "--port", str(port)]
    server = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert server.poll() is None, server.stdout and server.stdout.read()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                break
            time.sleep(0.1)
        yield address, port
    finally:
        server.terminate()
        server.wait(100)


def numbers(figure_data: list[dict[str, Any]]) -> list[Any]:
    """What stands for data in a figure."""
    keys = ("x", "y", "z", "ids", "meta")
    return [
        {key: trace[key] for key in keys if key in trace} | {"axes": [d["values"] for d in trace.get("dimensions", [])]}
        for trace in figure_data
    ]


def go_on(record: Record) -> None:
    """What a sweep writes: the running trial goes on and finishes, the best of all; others begin."""
    running = record.trial("0009")
    for epoch in range(4, 9):
        time.sleep(0.4)
        error = 40 - 3.25 * epoch
        row = {"step": 100 * epoch, "epoch": epoch, "val_error": error, "val_loss": 1.0, "val_images": 10_000.0}
        running.history.append(row)
        running.values["device_hours"] = epoch / 100
        if epoch == 6:
            record.trials.append(make_trial(11, "running", 20, False, STEPS, 0.3, 1))
        record.write()
    running.state, running.values["val_error"], record.best = "finished", 14.0, "0009"
    record.write()


def test_a_sweep_goes_on_before_ones_eyes(tmp_path: Path, browser: Any) -> None:
    record = make_record(tmp_path)
    write_runs(record)
    writer = threading.Thread(target=go_on, args=(record,), daemon=True)
    with serving(record.url) as (address, port):
        witness = Witness(browser, viewport={"width": 1280, "height": 900})
        page = witness.page
        page.goto(address)
        page.get_by_text("8 of 12", exact=True).wait_for()
        page.wait_for_function("document.querySelectorAll('canvas [role=row]').length == 11")
        page.evaluate("window.loadedOnce = true")

        # sorted by the lowest error, and zoomed in: both outlive what the sweep writes
        box = page.locator("[data-testid=stDataFrame] canvas").first.bounding_box()
        for x in range(250, 1000, 50):  # a canvas does not say where its columns are
            page.mouse.click(box["x"] + x, box["y"] + 18)
            page.wait_for_timeout(300)
            lowest = [float(line[4]) for line in witness.table() if line[4]]
            if lowest == sorted(lowest):
                break
        writer.start()
        page.wait_for_function("document.querySelectorAll('canvas [role=row]').length == 12")
        page.get_by_text("Best so far: cifar resnet32 with 14.00").wait_for()
        writer.join()
        page.get_by_text("9 of 12", exact=True).wait_for()
        page.wait_for_function("document.querySelector('canvas').textContent.includes('0009 ★')")

        now = read(record.url)
        table = witness.table()
        lowest = [float(line[4]) for line in table if line[4]]
        assert lowest == sorted(lowest), "sorting was kept"
        assert {line[0].split()[0]: line[4] for line in table} == {
            t.id: f"{t.best_error:g}" if t.id == "0009" else str(t.best_error) if t.history else "" for t in now.trials
        }
        assert {line[0].split()[0]: line[1].split(maxsplit=1)[1] for line in table} == {
            t.id: {"stopped": "stopped early"}.get(t.state, t.state) for t in now.trials
        }

        for view in panels(now):
            witness.choose(view.tab)
            page.get_by_role("heading", name=view.title, exact=True).wait_for()
            expected = view.draw(now)
            assert expected is not None
            found = witness.drawn(f"figure-{view.key}")
            assert numbers(found) == numbers(json.loads(expected.to_json())["data"]), view.key

        witness.choose("Curves")
        plot = page.locator(".st-key-figure-curves .js-plotly-plot")
        area = plot.locator(".nsewdrag").bounding_box()
        page.mouse.move(area["x"] + 200, area["y"] + 50)
        page.mouse.down()
        page.mouse.move(area["x"] + 500, area["y"] + 200, steps=4)
        page.mouse.up()
        zoom = plot.evaluate("plot => plot._fullLayout.xaxis.range")
        assert zoom[0] > 1
        record.trial("0011").history.append({"step": 200, "epoch": 2.0, "val_error": 33.0, "val_loss": 1.0})
        record.write()
        page.wait_for_function(
            "document.querySelector('.js-plotly-plot').data.find(line => line.meta == '0011').y.length == 2"
        )
        assert plot.evaluate("plot => plot._fullLayout.xaxis.range") == zoom, "the zoom was kept"
        assert page.evaluate("window.loadedOnce"), "without reload"
        page.keyboard.press("Tab")  # views can be chosen by keyboard
        page.locator(".st-key-view").get_by_role("radio", name="Curves", exact=True).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Parallel coordinates").wait_for()

        page.set_viewport_size({"width": 390, "height": 800})
        for view in [v for v in panels(now) if v.key in ("curves", "against-macs", "grid")]:  # all: the report's, below
            witness.choose(view.tab)
            page.get_by_role("heading", name=view.title, exact=True).wait_for()
            plot = page.locator(f".st-key-figure-{view.key} .js-plotly-plot")
            plot.wait_for()
            assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
            assert plot.bounding_box()["width"] <= 390
        witness.close((f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"))
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            with socket.socket() as probe:
                assert probe.connect_ex((outside, port)) != 0, "bound to this machine alone"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_the_report_needs_nothing(tmp_path: Path, browser: Any, run_job: Run, width: int, scheme: str) -> None:
    record = make_record(tmp_path / "sweep")
    write_runs(record)
    done = run_job("dashboard", record.url, "--html", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    witness = Witness(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = witness.page
    page.goto(f"file://{tmp_path}/report.html")
    now = read(record.url)
    for view in panels(now):
        plot = page.locator(f"#figure-{view.key}.js-plotly-plot")
        plot.wait_for()
        figure = view.draw(now)
        assert figure is not None
        found = plot.evaluate("plot => JSON.parse(JSON.stringify(plot.data))")
        assert numbers(found) == numbers(json.loads(figure.to_json())["data"]), view.key
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink = page.evaluate("document.querySelector('#figure-curves')._fullLayout.font.color")
    assert ink == {"light": "#22252a", "dark": "#e6e4df"}[scheme]

    head = page.locator("#trials ~ .scroll th button", has_text="lowest error so far")
    head.focus()
    page.keyboard.press("Enter")
    shown = page.locator("#trials ~ .scroll tbody th").all_inner_texts()
    ranked = sorted((t for t in now.trials if t.history), key=lambda t: t.best_error)
    assert [text.split()[0] for text in shown] == [t.id for t in ranked] + ["0010"]
    page.keyboard.press("Enter")
    assert page.locator("#trials ~ .scroll tbody th").first.inner_text().split()[0] == ranked[-1].id

    # Two trials side by side, a colour each; filters narrow boxes and table; the grid's fields are chosen.
    compared = "document.querySelector('#figure-compare').data.map(trace => [trace.meta, trace.line.color])"
    first = [trial for trial, _ in page.evaluate(compared)]
    assert first == first_choice(now, now.trials)
    for trial in first[1:]:
        page.locator(f"#chips input[value='{trial}']").uncheck()
    page.locator("#chips input[value='0005']").check()
    assert page.evaluate(compared) == [[first[0], COLOURS[0]], ["0005", COLOURS[1]]]
    rows = page.locator("#differences tbody tr").all_inner_texts()
    expected = ["\t".join([label, *values]) for label, values in differences(now, [first[0], "0005"])]
    assert [" ".join(row.split()) for row in rows] == [" ".join(row.split()) for row in expected]
    page.locator("#filters select[data-name='model.depth']").select_option("20")
    table = [text.split()[0] for text in page.locator("#trials ~ .scroll tbody th:visible").all_inner_texts()]
    assert sorted(table) == [t.id for t in now.trials if t.point["model.depth"] == 20]
    page.locator("#filters select[data-name='model.depth']").select_option("")
    page.locator("select[data-name=grid-down]").select_option("schedule")
    page.wait_for_function("document.querySelector('#figure-grid').data[0].y[0] === 'steps'")
    clipped = page.evaluate(CLIPPED)
    assert clipped == []

    page.locator("#trials ~ .scroll tbody a", has_text="0005").click()
    assert page.locator("#trial-0005").evaluate("trial => trial.open")
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    page.get_by_role("button", name="Copy recipe of 0005").press("Enter")
    page.get_by_text("Copied", exact=True).wait_for()
    assert page.evaluate("window.copied") == Path(record.place(now.trial("0005")), "recipe.yaml").read_text()
    witness.close((f"file://{tmp_path}/report.html",))


def test_mistakes_are_named(tmp_path: Path, run_job: Run) -> None:
    nothing = run_job("dashboard", tmp_path)
    assert nothing.returncode == 2
    assert (
        nothing.stderr
        == f"error: {tmp_path} holds no sweep: there is no sweep.json; give the folder <storage>/<name>\n"
    )
    make_record(tmp_path).write()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run_job("dashboard", tmp_path, "--port", port)
    assert refused.returncode == 2
    assert f"--port {port}" in refused.stderr
    assert "Traceback" not in refused.stderr
    nowhere = run_job("dashboard", tmp_path, "--html", tmp_path / "no" / "report.html")
    assert nowhere.returncode == 2
    assert "no/report.html" in nowhere.stderr


def test_without_the_extra(tmp_path: Path) -> None:
    make_record(tmp_path).write()
    code = (
        "import importlib.util as u, runpy, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'streamlit' else find(name, *rest)\n"
        "sys.modules['streamlit'] = None\n"
        "runpy.run_path('jobs/dashboard.py', run_name='__main__')\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)

    refused = run(str(tmp_path))
    assert refused.returncode == 2
    assert "uv sync --inexact --extra dashboard, or pip install 'streamlit" in refused.stderr
    written = run(str(tmp_path), "--html", str(tmp_path / "report.html"))
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "report.html").stat().st_size > 4_000_000
