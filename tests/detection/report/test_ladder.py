"""What the report says of a ladder, against the rows it is made of."""

import copy
import dataclasses
import json
from typing import Any

import pytest

from detection.report import ladder_chart, ladder_text, page
from detection.report.ladder import Rung, to_json
from detection.report.markdown import to_markdown
from detection.report.measures import BOXES
from detection.report.orders import agreement
from detection.report.summary import GainsReport
from detection.report.summary import to_json as report_json
from detection.report.ways import judge
from tests.detection.report.made import EVIL, Page


def rung(report: GainsReport, name: str, rows: slice = slice(None), **changes: Any) -> Rung:
    labels = [row.label for row in report.rows]
    costs = dict(zip(labels, (60.0, 30.0, 10.0), strict=True))
    work = dict(zip(labels, (6e12, 3e12, 1e12), strict=True))
    made = Rung(name, {"data.share": 0.1}, report.rows[rows], 0.1, costs, work, "AP", "9f2c")
    return dataclasses.replace(made, **changes)


@pytest.fixture
def ladder(report: GainsReport) -> dict[str, Any]:
    """A tenth that costs a tenth, a rung without the third row, and the last."""
    tenth = {label: seconds / 10 for label, seconds in rung(report, "").seconds.items()}
    return to_json(
        [
            rung(report, "tenth", seconds=tenth),
            rung(report, "heads", slice(2), labels=1.0, work={}),
            rung(report, "full", labels=1.0, changes={}),
        ],
        {"short": "loss is not finite"},
        report.baseline,
        ["Rung heads is without one-heads-seed1: out of memory"],
        resamples=100,
    )


@pytest.fixture(autouse=True, scope="module")
def provenance(report: GainsReport) -> None:
    for row in report.rows:
        for training in row.trainings:
            training.metrics.setdefault("provenance", {}).update({"train_images": 32, "steps": 12})


def test_numbers_are_those_of_the_report(report: GainsReport, summary: dict[str, Any], ladder: dict[str, Any]) -> None:
    assert json.loads(json.dumps(ladder, allow_nan=False)) == ladder
    tenth, heads, full = ladder["rungs"]
    for row in summary["rows"]:
        assert full["worth"][row["label"]] == row["AP"]
    assert [one["seconds_share"] for one in (tenth, heads, full)] == pytest.approx([0.1, 1, 1])
    assert [one["multiply_adds_share"] for one in (tenth, heads, full)] == [1, None, 1]
    assert heads["seconds"] == 6 * 60 + 3 * 30  # trainings of the first row and of the second
    assert heads["without"] == ["from scratch"]
    assert [one["trainings"] for one in (tenth, heads, full)] == [10, 9, 10]
    assert tenth["tau"]["value"] == 1.0
    assert tenth["tau"]["joint"] is None  # the third row was trained once
    way, _ = judge(report.rows[:2], "AP", "9f2c", 100)
    assert heads["tau"] == dataclasses.asdict(agreement(way, judge(report.rows, "AP", "9f2c", 100)[0]))
    assert heads["tau"]["joint"]


def test_a_training_that_failed_makes_no_rung_cheaper(report: GainsReport) -> None:
    first, *others = report.rows
    fewer = (dataclasses.replace(first, trainings=first.trainings[:4]), *others)
    last = rung(report, "full", labels=1.0, changes={})
    made = to_json([rung(report, "same", rows=slice(None)), last], {}, report.baseline, resamples=100)
    short = to_json([dataclasses.replace(rung(report, "same"), rows=fewer), last], {}, report.baseline, resamples=100)
    for name in ("seconds_share", "multiply_adds_share"):
        assert made["rungs"][0][name] == short["rungs"][0][name] == 1
    assert short["rungs"][0]["seconds"] == made["rungs"][0]["seconds"] - 2 * 60


def test_units_are_pretrainings_where_there_are_several(report: GainsReport) -> None:
    way, worth = judge(report.rows, "AP", "9f2c", 100)
    assert [len(rows) for rows in way.rows.values()] == [3, 3, 1]
    assert list(way.pretrainings.values()) == [(4, 5, 6), (), ()]
    assert way.num_images == 50
    first = report.rows[0]
    assert worth[first.label].value == pytest.approx(
        sum(one.metrics["bbox"]["AP"] for one in first.trainings) / len(first.trainings)
    )
    assert BOXES.names[0] == "AP"


def told(ladder: dict[str, Any], **changes: Any) -> str:
    changed = copy.deepcopy(ladder)
    changed["rungs"][0] |= {key: value for key, value in changes.items() if key != "tau"}
    changed["rungs"][0]["tau"] |= changes.get("tau", {})
    del changed["rungs"][1]
    return ladder_text.headline(changed)


def test_the_first_line_says_which_rung_will_do(ladder: dict[str, Any]) -> None:
    span = {"low": 0.85, "high": 1.0}
    assert told(ladder).startswith("tenth gives the order of full with tau 1.00 [")
    assert told(ladder).endswith("at 10.0 % of its seconds; what another training would change is unknown.")
    assert told(ladder, tau={"joint": span}).endswith("; all of its interval is at 0.8 or more.")
    wide = {"value": 0.87, "joint": {"low": -0.2, "high": 1.0}}
    assert "tau 0.87 (−0.20 to 1.00), at 10.0 %" in told(ladder, tau=wide)
    assert told(ladder, tau=wide).endswith("; but its interval reaches below 0.8.")
    none = "No rung gives the order of full with a tau of 0.8 or more"
    assert told(ladder, tau={"value": 0.7}) == told(ladder, tau={"value": None}) == f"{none}."
    dear = told(ladder, seconds_share=0.25)
    assert dear.startswith(f"{none} at 10 % of its seconds or less; tenth gives the order of full with tau 1.00 [")
    assert dear.endswith("at 25.0 % of its seconds.")


def test_the_same_in_markdown_and_on_the_page(report: GainsReport, ladder: dict[str, Any]) -> None:
    summary = report_json(dataclasses.replace(report, ladder=ladder), resamples=20)
    assert summary["ladder"] == ladder
    text, html = to_markdown(summary), page.to_html(summary)
    table = Page(html).table
    for said in (text, html):
        assert "Rung short is missing: loss is not finite" in said
        assert "Rung heads is without from scratch, and compared without." in said
        assert "Rung heads is without one-heads-seed1: out of memory" in said
        assert "<script>" not in said
    for cells in ladder_text.lines_of(ladder):
        assert "| " + " | ".join(cells) + " |" in text
        for cell in cells[:4]:
            assert cell in table
    assert "| tenth | data.share 0.1 | 32 images | 10 | 1.00 [" in text
    assert ladder_text.worths(ladder)[0][0] == EVIL
    assert html.count("data:image/png;base64,") == 1


def test_the_chart_draws_what_there_is(ladder: dict[str, Any]) -> None:
    whole = ladder_chart.draw(ladder)
    assert whole.startswith(b"\x89PNG")
    alone = {**ladder, "rungs": ladder["rungs"][1:]}
    assert 5000 < len(ladder_chart.draw(alone)) < len(whole)  # no share of the labels: one panel
    assert ladder_chart.draw({**ladder, "rungs": ladder["rungs"][2:]}).startswith(b"\x89PNG")


def test_a_rung_without_a_row_does_not_speak_for_all(ladder: dict[str, Any]) -> None:
    alone = {**ladder, "rungs": copy.deepcopy(ladder["rungs"][1:])}
    alone["rungs"][0] |= {"seconds_share": 0.05, "tau": {**alone["rungs"][0]["tau"], "value": 1.0}}
    assert "by 2 of 3 rows" in ladder_text.headline(alone)
