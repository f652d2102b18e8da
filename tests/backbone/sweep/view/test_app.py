"""The live page without a browser. With one, while a sweep runs: tests/jobs/test_dashboard.py."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from backbone.sweep.record import Record, read
from backbone.sweep.view import panels
from tests.backbone.sweep.conftest import make_record, write_runs

AppTest = pytest.importorskip("streamlit.testing.v1", reason="the extra [dashboard] is not installed").AppTest


def open_page(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.find_spec("backbone.sweep.view.app")
    assert spec
    assert spec.origin
    monkeypatch.setattr(sys, "argv", ["app.py", url])
    page = AppTest.from_file(spec.origin, default_timeout=120).run()
    assert not page.exception
    return page


def text_of(page: Any) -> str:
    return " ".join(element.proto.body for element in page.get("html"))


def figures_of(page: Any) -> list[dict]:
    found = [json.loads(e.proto.json) for e in page.get("bidi_component") if e.proto.component_name == "chart"]
    return [data["figure"] for data in found]


def test_every_view_shows_its_figure(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(record)
    page = open_page(record.url, monkeypatch)
    assert "Best so far: cifar resnet44" in text_of(page)
    assert page.metric[0].value == "8 of 12"
    table = page.dataframe[0].value
    assert list(table["lowest error so far (%)"].dropna()) == [t.best_error for t in record.trials if t.history]
    assert list(table["cost"].dropna()) == [t.values["device_hours"] for t in record.trials if t.history]
    for panel in panels.panels(record):
        page.button_group[0].set_value(panel.key).run()
        assert not page.exception
        assert page.subheader[0].value == panel.title
        figure = panel.draw(record)
        assert figure is not None
        assert figures_of(page) == [json.loads(figure.to_json())]


def test_a_trial_in_full(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(record)
    page = open_page(record.url, monkeypatch)
    assert page.selectbox[0].value == record.best
    page.selectbox[0].set_value("0005").run()
    assert page.error[0].value == "FloatingPointError: loss is not finite at step 131"
    codes = [code.value for code in page.code]
    assert codes[0] == "name: '0005'\nmodel:\n  depth: 44"
    assert "epoch 1/8" in codes[1]
    assert f"tensorboard --logdir {record.url}/trials/0005/tensorboard" in codes
    assert [trace["meta"] for trace in figures_of(page)[0]["data"]] == ["0005"]


def test_trials_side_by_side(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters choose what the table shows and what may be compared; both outlive another view."""
    write_runs(record)
    page = open_page(record.url, monkeypatch)
    (filters,) = [one for one in page.multiselect if one.key == "filter-model.depth"]
    filters.set_value(["20", "44"]).run()
    chosen = [t.id for t in record.trials if t.point["model.depth"] in (20, 44)]
    assert [cell.split()[0] for cell in page.dataframe[0].value["trial"]] == chosen
    page.button_group[0].set_value("compare").run()
    (compared,) = [one for one in page.multiselect if one.key == "compared"]
    done = sorted((t for t in record.of_state("finished") if t.id in chosen), key=lambda t: t.values["val_error"])
    first = compared.value
    assert first[: len(done)] == [t.id for t in done]
    compared.set_value(["0001", "0005"]).run()
    assert not page.exception
    assert [trace["meta"] for trace in figures_of(page)[0]["data"]] == ["0001", "0005"]
    assert "<th>optim.lr</th><td>0.1</td><td>1</td>" in text_of(page)
    page.button_group[0].set_value("grid").run()
    page.selectbox[0].set_value("model.shortcut").run()  # until now across
    assert page.selectbox[1].value == "model.depth"
    page.selectbox[1].set_value("schedule").run()
    (figure,) = figures_of(page)
    assert (figure["data"][0]["y"], figure["data"][0]["x"]) == (["A", "none"], ["steps", "cosine"])
    page.button_group[0].set_value("compare").run()
    (compared,) = [one for one in page.multiselect if one.key == "compared"]
    assert compared.value == ["0001", "0005"]
    (filters,) = [one for one in page.multiselect if one.key == "filter-model.depth"]
    assert filters.value == ["20", "44"]
    page.button_group[0].set_value("grid").run()
    assert [box.value for box in page.selectbox] == ["model.shortcut", "schedule"]


def test_what_was_chosen_outlives_new_data_and_other_views(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(record)
    page = open_page(record.url, monkeypatch)
    page.selectbox[0].set_value("0003").run()
    page.button_group[0].set_value("grid").run()
    record.trials.pop()
    record.write()
    page.run()
    assert page.button_group[0].value == "grid"
    page.button_group[0].set_value("trials").run()
    assert page.selectbox[0].value == "0003"
    assert len(page.dataframe[0].value) == 9
    page.button_group[0].set_value(None).run()  # a click on the chosen view does not close it
    assert page.button_group[0].value == "trials"


@pytest.mark.parametrize("n", [0, 1])
def test_few_trials(record: Record, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    record.trials, record.best, record.pareto, record.importance = record.trials[9 : 9 + n], "", [], {}
    record.write()
    page = open_page(record.url, monkeypatch)
    assert "No trial has started yet." in text_of(page)
    for panel in panels.panels(record):
        page.button_group[0].set_value(panel.key).run()
        assert not page.exception
        assert bool(page.info) == (panel.draw(record) is None)


def test_a_sweep_elsewhere_that_is_gone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record("memory://sweeps/sample")
    record.write()
    page = open_page(record.url, monkeypatch)
    assert page.metric[0].value == "8 of 12"
    fsspec.filesystem("memory").rm("/sweeps/sample/sweep.json")
    page = open_page(record.url, monkeypatch)
    assert "holds no sweep" in page.error[0].value


def test_a_sweep_that_stopped_writing_is_not_called_running(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write()
    assert read(record.url).alive
    assert "running</b>" in text_of(open_page(record.url, monkeypatch))
    path = Path(record.url, "sweep.json")
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"updated": tree["updated"] - 600}))
    assert "nothing was written for 10\u00a0min" in text_of(open_page(record.url, monkeypatch))
