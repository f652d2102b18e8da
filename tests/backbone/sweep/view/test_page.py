"""The report as a file: whole, escaped, in need of nothing. In a browser: tests/jobs/test_dashboard.py."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from backbone.sweep.record import Record
from backbone.sweep.view import compare, page
from backbone.sweep.view.files import TAIL, Texts, of_trial
from backbone.sweep.view.grid import grid
from backbone.sweep.view.panels import panels
from tests.backbone.sweep.conftest import write_runs

VOID = {"meta", "br", "img", "link", "input"}


class Outline(HTMLParser):
    """Tags that are open, ids, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.open += [] if tag in VOID else [tag]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.fetched += [given[name] or "" for name in ("src",) if name in given]
        self.fetched += [given.get("href") or ""] if tag == "link" else []
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_a_whole_page(record: Record) -> None:
    write_runs(record)
    text = page.report(record)
    outline = Outline(text)
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.fetched == []
    assert text.count("* plotly.js v") == 1
    assert text.count("window.Plotly = Plotly") == 1
    shown = re.findall(r'<script type="application/json" id="data-([^"]+)">(.*?)</script>', text)
    drawn = {panel.key: figure for panel in panels(record) if (figure := panel.draw(record)) is not None}
    assert {key: json.loads(data) for key, data in shown} == {key: json.loads(f.to_json()) for key, f in drawn.items()}
    for trial in record.trials:
        assert f'id="trial-{trial.id}"' in text
        assert ("recipe-" + trial.id in text) == bool(trial.history)
    assert text.count("FloatingPointError: loss is not finite at step 131") >= 3
    assert "python jobs/pretrain.py --config" in text


def test_the_tables_hold_the_numbers(record: Record) -> None:
    text = page.to_html(record, {})
    trials = text[text.index('id="trials"') : text.index('id="failed"')]
    rows = re.findall(r"<tr.*?</tr>", trials)[1:]
    assert len(rows) == len(record.trials)
    for trial, row in zip(record.trials, rows, strict=True):
        keys = re.findall(r'data-key="([^"]*)"', row)
        assert keys[:2] == [trial.id, trial.state]
        numbers = [float(k) for k in keys if re.fullmatch(r"[\d.e+-]+", k)]
        assert (trial.values.get("val_error") in numbers) or trial.state != "finished"
        assert not trial.history or trial.best_error in numbers
    pareto = text[text.index('id="pareto"') : text.index('id="trials"')]
    assert set(re.findall(r'href="#trial-(\d+)"', pareto)) == set(record.pareto)


def test_a_finished_sweep_promises_no_more_pictures(record: Record) -> None:
    """Three finished trials say nothing of importance, and a space of rates has no grid."""
    record.state, record.trials, record.importance = "finished", record.of_state("finished")[:3], {}
    record.best, record.pareto = "0002", ["0002"]
    for trial in record.trials:
        trial.point = {"optim.lr": trial.point["optim.lr"]}
    text = page.to_html(record, {})
    assert "yet" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "It needs 5 finished trials that differ; 3 finished." in text
    assert "No two fields have listed values" in text
    record.state = "running"
    assert "Nothing to draw yet." in page.to_html(record, {})


def test_what_the_reader_chooses_from(record: Record) -> None:
    """The table as CSV, the grid of each pair of fields, and the trials to compare lie in the page."""
    text = page.to_html(record, {})
    data = re.findall(r'download="sample.csv" href="data:text/csv;base64,([^"]+)"', text)
    assert [base64.b64decode(one).decode() for one in data] == [compare.as_csv(record)]
    embedded = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text))
    pairs = json.loads(embedded["grid-figures"])
    fields = ["model.depth", "model.shortcut", "schedule"]
    assert set(pairs) == {f"{down}|{across}" for down in fields for across in fields if down != across}
    figure = grid(record, ("schedule", "model.depth"))
    assert figure
    assert pairs["schedule|model.depth"] == json.loads(figure.to_json())
    told = json.loads(embedded["compare-trials"])
    assert list(told["trials"]) == [t.id for t in record.trials if t.history]
    assert told["passing"]["model.depth"]["20"] == ["0001", "0006"]
    assert told["chosen"] == compare.first_choice(record, record.trials)


def test_everything_is_escaped(record: Record) -> None:
    evil = "</script><script>alert(1)</script>"
    record.name, record.devices, record.why, record.state = evil, evil, evil, "interrupted"
    record.sweep["note"] = record.base["note"] = record.dashboard = record.versions[evil] = evil
    for trial in record.trials:
        trial.why, trial.net, trial.point["model.shortcut"] = evil, f"{evil}20", f"{evil}{trial.id}"
    clean = Outline(page.to_html(record, {}, "")).scripts
    text = page.to_html(record, {t.id: Texts(evil, evil) for t in record.trials}, evil)
    assert "<script>alert" not in text
    assert Outline(text).scripts == clean == 2 + text.count('<script type="application/json"')


@pytest.mark.parametrize("n", [0, 1])
def test_few_trials(record: Record, n: int) -> None:
    record.trials, record.best, record.pareto, record.importance = record.trials[:n], "", [], {}
    text = page.to_html(record, {})
    assert Outline(text).open == []
    assert "No trial has" in text


def test_only_the_end_of_a_long_log_is_read(record: Record) -> None:
    write_runs(record)
    trial = record.trials[0]
    Path(record.place(trial), "log.txt").write_text("".join(f"step {i}\n" for i in range(100_000)))
    log = of_trial(record, trial).log
    assert log.endswith("step 99999\n")
    assert len(log) <= TAIL + 2
    assert log.startswith("…\nstep ")
    assert of_trial(record, record.trials[-1]) == Texts()
