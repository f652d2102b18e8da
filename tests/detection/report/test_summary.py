"""The report against the results it is made of: numbers, page, pictures."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.report import charts, page
from detection.report.markdown import to_markdown
from detection.report.stored import Overlaps
from detection.report.summary import GainsReport, Missing, Training, to_json, write
from detection.report.wording import ERRORS, headlines, minutes, needed, quantity, signed
from tests.detection.report import simulated
from tests.detection.report.made import EVIL, PAPERS, Page


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [v for k, one in value.items() for v in (k, *leaves(one))]
    return [v for one in value for v in leaves(one)] if isinstance(value, list) else [value]


def sayable(summary: dict[str, Any]) -> set[str]:
    """Every number that may be said: those of the JSON, as rounded for people, and those in its texts."""
    said = set()
    parts = {part["name"] for part in summary["parts"]}
    rows = [{k: v | {"curve": []} if k in parts else v for k, v in row.items()} for row in summary["rows"]]
    for leaf in leaves(summary | {"rows": rows, "recall": []}):
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
            forms = (f"{abs(100 * leaf):.1f}", f"{abs(100 * leaf):.0f}", f"{leaf:.1f}", f"{leaf:.0f}", str(leaf))
            said |= {*forms, quantity(leaf).split()[0], minutes(leaf).split()[0]}
        elif isinstance(leaf, str):
            said |= set(re.findall(r"\d+(?:\.\d+)?", leaf))
    return said


def test_json_holds_pycocotools_numbers(report: GainsReport, summary: dict[str, Any]) -> None:
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    for row, told in zip(report.rows, summary["rows"], strict=True):
        own = [s.metrics["bbox"] for s in row.trainings]
        for metric in ("AP", "AP50", "AP75"):
            assert told[metric]["value"] == pytest.approx(np.mean([b[metric] for b in own]), abs=1e-12)
            for of in ("images", "trainings", "joint"):
                if told[metric][of]:
                    assert told[metric][of]["low"] <= told[metric]["value"] <= told[metric][of]["high"]
        boxes = told["boxes"]
        assert boxes["sizes"]["APl"] == pytest.approx(np.mean([b["APl"] for b in own]))
        assert boxes["per_class"]["bus"]["AP"] == pytest.approx(np.mean([b["per_class"]["bus"]["AP"] for b in own]))
        assert np.mean(boxes["curve"]) == pytest.approx(told["AP50"]["value"], abs=1e-12)
    best, base, scratch = summary["rows"]
    gain = best["gain"]["AP"]
    assert gain["absolute"]["value"] == pytest.approx(best["AP"]["value"] - base["AP"]["value"])
    assert gain["relative"]["value"] == pytest.approx(best["AP"]["value"] / base["AP"]["value"] - 1)
    assert base["gain"] == {}
    assert set(best["spread"]) == {"AP", "AP50", "AP75"}
    assert scratch["spread"] == {}
    assert [row["independent"] for row in summary["rows"]] == [3, 3, 1]
    assert [row["pretrainings"] for row in summary["rows"]] == [3, 1, 0]
    assert gain["verdict"] == "more"
    assert scratch["gain"]["AP"]["verdict"] is None


def test_headline_says_how_much_longer_a_row_was_fine_tuned(summary: dict[str, Any]) -> None:
    best, base, _ = summary["rows"]
    for steps, told in (
        (900, ", with 3 times its steps of fine-tuning"),
        (75, ", with 1/4 of its steps"),
        (300, "\u00a0%"),
    ):
        rows = [row | {"regime": row["regime"] | {"steps": n}} for row, n in ((best, steps), (base, 300))]
        said, verdict = headlines(summary | {"rows": rows})[0].split("; ")
        assert said.removesuffix(" of fine-tuning").endswith(told.removesuffix(" of fine-tuning"))
        assert verdict.startswith("a difference")


VERDICTS = r"difference|(in|out)side the interval"


def test_headline_says_what_is_shown_and_what_is_not_known(summary: dict[str, Any]) -> None:
    first, second, last = headlines(summary)
    best, _, scratch = summary["rows"]
    joint = best["AP"]["joint"]
    told = f"{100 * best['AP']['value']:.1f} ({100 * joint['low']:.1f}–{100 * joint['high']:.1f})"
    assert first.startswith(f"{EVIL}: AP {told}, ")
    assert f"relative {100 * best['gain']['AP']['relative']['value']:+.0f}\u00a0%" in first
    assert first.endswith("a difference between these very backbones of plain-18, zero is outside the interval.")
    images = scratch["AP"]["images"]
    assert f"[{100 * images['low']:.1f}–{100 * images['high']:.1f}]" in second
    assert second.endswith("from scratch was trained once: what another training would change is unknown.")
    assert not re.search(VERDICTS, second)
    assert last.endswith(", the baseline.")
    covers = " ".join(summary["intervals"]["covers"])
    assert "from scratch was trained once" in covers
    assert "another pretraining of plain-18 would change is unknown" in covers


def test_verdicts_need_both_noises(report: GainsReport) -> None:
    """Of single trainings none is given anywhere, however far their intervals of images lie from zero."""
    rows = tuple(dataclasses.replace(row, trainings=row.trainings[:1]) for row in report.rows)
    told = to_json(dataclasses.replace(report, rows=rows), resamples=50)
    assert told["rows"][0]["gain"]["AP"]["absolute"]["images"]["low"] > 0
    for said in (to_markdown(told), page.to_html(told)):
        assert "one training each: what another training would change is unknown" in said
        assert not re.search(VERDICTS, said.replace(charts.WHISKERS, ""))
    html = page.to_html(told)
    assert 'class="whisker given"' in html
    assert 'class="whisker s1"' not in html
    assert '<small class="given">' in html
    assert '<span class="given">[' in html
    same = (report.rows[1], dataclasses.replace(report.rows[1], label="twin"))
    told = to_json(dataclasses.replace(report, rows=same), resamples=50)
    assert headlines(told)[0].endswith(
        "no difference shown between these very backbones of twin and plain-18, zero is inside the interval."
    )
    html = page.to_html(told)
    assert 'class="whisker s1"' in html
    assert 'class="given"' not in html


def test_what_is_missing_is_named(report: GainsReport) -> None:
    lost = Missing("plain-18", "gains-plain-18-seed7", "loss is not finite <at step 3>")
    told = to_json(dataclasses.replace(report, missing=(lost,)), resamples=10)
    line = "gains-plain-18-seed7 is missing: loss is not finite"
    assert line in to_markdown(told)
    assert line in page.to_html(told)
    assert "<at step 3>" not in page.to_html(told)


def test_a_half_width_is_said_in_trainings_or_in_images(report: GainsReport) -> None:
    answers = {0.3: r"[2-9] trainings a row", 0.0001: "more images: any number|more than 100 trainings a row"}
    for wanted, answer in answers.items():
        told = to_json(dataclasses.replace(report, half_width=wanted), resamples=50)
        for said in (to_markdown(told), page.to_html(told)):
            assert f"±{100 * wanted:.1f} takes" in said
            assert re.search(answer, said)
            assert "unknown: train each row twice at least" in said  # from scratch


def test_more_trainings_than_anyone_has_are_said_to_be_too_many() -> None:
    gain = {"needed": None, "images_alone": 0.004}
    assert needed(gain, 0.005) == "more than 100 trainings a row"
    assert needed(gain, 0.003) == "more images: any number of trainings leaves ±0.4"


def test_markdown_has_the_numbers_of_the_json_and_no_others(summary: dict[str, Any]) -> None:
    text = to_markdown(summary)
    allowed = sayable(summary) | set(re.findall(r"\d+(?:\.\d+)?", f"95 AP50 AP75 {ERRORS}"))
    assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= allowed
    for row in summary["rows"]:
        line = next(x for x in text.splitlines() if x.startswith("| " + row["label"].split(" <")[0]))
        for told in (row["AP"], row["gain"].get("AP", {}).get("absolute", row["AP"])):
            for value in (told["value"], *(told["joint"] or told["images"]).values()):
                assert f"{abs(100 * value):.1f}" in line
    assert "<script>" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "| 21.2 | 27.2 | +6.0 | +28\u00a0% |" in text
    assert [of for of, numbers in PAPERS.items() if re.search(numbers, text)] == ["AP", "AP50"]


def test_page_has_the_numbers_of_the_json_and_no_others(summary: dict[str, Any]) -> None:
    html = page.to_html(summary)
    parsed = Page(html)
    assert set(re.findall(r"\d+(?:\.\d+)?", parsed.table)) <= sayable(summary) | {"95", "50", "75", "1512.03385"}
    for row in summary["rows"]:
        for value in (row["AP"]["value"], *(row["AP"]["joint"] or row["AP"]["images"]).values()):
            assert f"{100 * value:.1f}" in parsed.table
    changed = json.loads(json.dumps(summary))
    changed["rows"][0]["AP"]["value"] = 0.7777
    assert "77.8" not in parsed.table
    assert "77.8" in Page(page.to_html(changed)).table


def test_page_loads_nothing_and_escapes_everything(report: GainsReport, tmp_path: Path) -> None:
    write(str(tmp_path / "out"), report, simulated.pixels, resamples=20)
    html = (tmp_path / "out/report.html").read_text()
    assert len(html) < 3_000_000
    parsed = Page(html)
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in parsed.tags}
    for tag, attrs in parsed.tags:
        for name in ("src", "href", "srcset", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, name)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "&lt;b&gt;dog&lt;/b&gt;" in html
    # accessible: all pictures are named, all headers scoped, all references resolve, no id twice
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in parsed.all("svg"))
    assert all(th.get("scope") in ("col", "row") for th in parsed.all("th"))
    ids = [attrs["id"] for _, attrs in parsed.tags if attrs.get("id")]
    assert len(set(ids)) == len(ids)
    assert {use["href"] for use in parsed.all("use")} <= {f"#{i}" for i in ids}
    assert len(parsed.all("use")) == 12  # six samples, shown for two rows beside the ground truth
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert to_markdown(saved) == (tmp_path / "out/report.md").read_text()


def test_gains_chart_is_to_scale(summary: dict[str, Any]) -> None:
    parsed = Page(charts.gains(summary, summary["parts"][0]))
    spans = [row["gain"]["AP"]["absolute"] for row in summary["rows"] if row["gain"]]
    zero = next(float(x["x1"] or 0) for x in parsed.all("line") if x["class"] == "zero")
    whiskers = [x for x in parsed.all("line") if re.match("whisker (?!inner)", x["class"] or "")]
    inner = [x for x in parsed.all("line") if (x["class"] or "").startswith("whisker inner")]
    unit = (float(parsed.all("circle")[0]["cx"] or 0) - zero) / spans[0]["value"]
    assert unit > 0
    for span, dot, whisker in zip(spans, parsed.all("circle"), whiskers, strict=True):
        drawn = [float(v or 0) for v in (dot["cx"], whisker["x1"], whisker["x2"])]
        ends = span["joint"] or span["images"]
        assert drawn == pytest.approx([zero + unit * v for v in (span["value"], *ends.values())], abs=0.5)
        assert ("given" in (whisker["class"] or "")) == (span["joint"] is None)
    assert len(inner) == 1


def test_many_classes_become_a_table(summary: dict[str, Any]) -> None:
    many = json.loads(json.dumps(summary))
    many["classes"] = [f"class {i}" for i in range(31)]
    for row in many["rows"]:
        row["boxes"]["per_class"] = {name: {"AP": 0.5, "objects": 1} for name in many["classes"]}
    few, lots = page.to_html(summary), page.to_html(many)
    assert "AP by class" in few
    assert "AP by class" not in lots
    assert "class 30" in Page(lots).table


def test_one_row_and_no_detections(report: GainsReport) -> None:
    (alone,) = [row for row in report.rows if row.label == report.baseline]
    told = to_json(dataclasses.replace(report, rows=(alone,)), resamples=10)
    assert headlines(told)[0].endswith("the baseline.")
    assert "Gain in AP</h3>" not in page.to_html(told)
    result = alone.trainings[0]
    own = result.matches["bbox"]
    rows = {name: getattr(own, name)[:0] for name in ("image", "label", "score", "tp", "ignored")}
    none = Overlaps(**{name: getattr(own.overlaps, name)[:0] for name in Overlaps.__dataclass_fields__})
    metrics = json.loads(json.dumps(result.metrics))
    metrics["bbox"]["AP"] = 0.0
    metrics["notes"] = ["no detections: AP is 0"]
    silent = Training(0, None, metrics, {"bbox": dataclasses.replace(own, **rows, overlaps=none)}, result.results)
    nothing = dataclasses.replace(alone, label="nothing", trainings=(silent,))
    told = to_json(dataclasses.replace(report, rows=(nothing, alone), baseline="nothing"), resamples=10)
    assert told["rows"][1]["gain"]["AP"]["relative"] is None
    assert "no detections: AP is 0" in page.to_html(told)


def test_what_does_not_belong_together_is_refused(report: GainsReport, tmp_path: Path) -> None:
    row = report.rows[1]
    with pytest.raises(UserError, match="share a label"):
        to_json(dataclasses.replace(report, rows=(row, row)))
    metrics = {**row.trainings[0].metrics, "bbox": {**row.trainings[0].metrics["bbox"], "AP": 0.99}}
    liar = dataclasses.replace(row, trainings=(dataclasses.replace(row.trainings[0], metrics=metrics),))
    with pytest.raises(UserError, match=r"says AP 0\.9900"):
        to_json(dataclasses.replace(report, rows=(liar,)), resamples=5)
    with pytest.raises(UserError, match=r"metrics\.json"):
        Training.read(str(tmp_path), 0)


def test_numbers_are_said_plainly() -> None:
    assert [signed(v) for v in (0.041, -0.041, 0.0001, -0.0001, None)] == ["+4.1", "−4.1", "0.0", "0.0", "–"]
    assert [quantity(v) for v in (28_400_000, 1.814e9, 999, 136_900_000)] == ["28.4 M", "1.81 G", "999", "137 M"]
    assert [minutes(v) for v in (42, 340, 9000)] == ["42 s", "6 min", "2.5 h"]


def test_fourteen_rows_beside_the_baseline_look_different() -> None:
    told = {"baseline": "0", "rows": [{"label": str(number)} for number in range(15)]}
    assert len({charts.key(told, str(number)) for number in range(15)}) == 15
