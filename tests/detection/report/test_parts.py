"""VOC's measure, masks and errors in the report, beside or in place of COCO's AP of boxes."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.report import page
from detection.report.markdown import to_markdown
from detection.report.summary import GainsReport, to_json, write
from detection.report.wording import headlines, why
from tests.detection.report import simulated
from tests.detection.report.made import EVIL, PAPERS, Page, made


@pytest.mark.parametrize("main", ["mAP", "mAP07"])
def test_voc_data_are_told_in_vocs_measure(report: GainsReport, main: Any) -> None:
    """Column, gain, classes and curve; and of the paper's numbers those in this measure and no others."""
    told = to_json(dataclasses.replace(report, main=main), resamples=50)
    best, base, _ = told["rows"]
    for row, own in zip(told["rows"], report.rows, strict=True):
        scores = [t.metrics["voc"] for t in own.trainings]
        assert row[main]["value"] == pytest.approx(np.mean([one[main] for one in scores]), abs=1e-12)
        key = main.removeprefix("m")
        by_class = np.mean([one["per_class"]["bus"][key] for one in scores])
        assert row["boxes"]["per_class"]["bus"]["AP"] == pytest.approx(by_class)
        assert row["AP"]["value"] == pytest.approx(np.mean([t.metrics["bbox"]["AP"] for t in own.trainings]), abs=1e-12)
    gain = best["gain"][main]["absolute"]
    assert gain["value"] == pytest.approx(best[main]["value"] - base[main]["value"])
    assert gain["joint"]["low"] < gain["value"] < gain["joint"]["high"]
    assert f"VOC mAP {100 * best[main]['value']:.1f} (" in headlines(told)[0]
    assert f"{100 * gain['joint']['low']:+.1f} to {100 * gain['joint']['high']:+.1f}" in headlines(told)[0]
    for said in (to_markdown(told), Page(page.to_html(told)).table):
        assert "Gain in VOC mAP" in said
        assert [of for of, numbers in PAPERS.items() if re.search(numbers, said)] == [main]
    assert "points of VOC mAP over the baseline" in page.to_html(told)


def test_masks_have_all_that_boxes_have(tmp_path: Path) -> None:
    report = made(tmp_path, 20, masks=True)
    told = write(str(tmp_path / "out"), report, simulated.pixels, resamples=50)
    assert [(part["name"], part["main"]) for part in told["parts"]] == [("boxes", "AP"), ("masks", "AP_masks")]
    for row, told_row in zip(report.rows, told["rows"], strict=True):
        own = [t.metrics["segm"] for t in row.trainings]
        for metric, key in (("AP_masks", "AP"), ("AP50_masks", "AP50"), ("AP75_masks", "AP75")):
            assert told_row[metric]["value"] == pytest.approx(np.mean([one[key] for one in own]), abs=1e-12)
        assert told_row["AP"]["value"] != told_row["AP_masks"]["value"]
        assert np.mean(told_row["masks"]["curve"]) == pytest.approx(told_row["AP50_masks"]["value"], abs=1e-12)
        by_class = np.mean([one["per_class"]["bus"]["AP"] for one in own])
        assert told_row["masks"]["per_class"]["bus"]["AP"] == pytest.approx(by_class)
        assert set(told_row["masks"]) == set(told_row["boxes"])
    best, base, scratch = told["rows"]
    gain = best["gain"]["AP_masks"]["absolute"]
    assert gain["value"] == pytest.approx(best["AP_masks"]["value"] - base["AP_masks"]["value"])
    assert gain["images"]["low"] < gain["value"] < gain["joint"]["high"]
    assert best["spread"]["AP_masks"]["std"] > 0
    assert scratch["gain"]["AP_masks"]["verdict"] is None
    (first, *_), (line, *_) = headlines(told), headlines(told, 1)
    assert ": AP " in first  # boxes' comes first
    assert f": mask AP {100 * best['AP_masks']['value']:.1f} (" in line
    html = (tmp_path / "out/report.html").read_text()
    assert len(html) < 3_000_000
    parsed = Page(html)
    assert {"boxes", "masks"} <= {attrs.get("id") for attrs in parsed.all("section") + parsed.all("h2")}
    for said in (html, (tmp_path / "out/report.md").read_text()):
        assert "Gain in mask AP" in said
        assert "mask AP50" in said
    for chart in ("Gain in mask AP over", "mask AP against cost"):
        assert any(chart in (svg["aria-label"] or "") for svg in parsed.all("svg"))
    assert sum("precision over recall" in (svg["aria-label"] or "").lower() for svg in parsed.all("svg")) == 2
    assert "Masks, plain-18 (seed 0): largest misses" in html
    assert any((path["class"] or "") == "hit" for path in parsed.all("path"))
    one = report.rows[1].trainings[0]
    mixed = dataclasses.replace(one, matches={"bbox": one.matches["bbox"]})
    rows = (report.rows[0], dataclasses.replace(report.rows[1], trainings=(mixed,)))
    told = to_json(dataclasses.replace(report, rows=rows), resamples=10)
    assert [part["name"] for part in told["parts"]] == ["boxes"]  # not all rows have them


def test_errors_are_told_with_their_intervals(summary: dict[str, Any]) -> None:
    best, base, scratch = summary["rows"]
    for row, baseline in ((best, base), (scratch, base)):
        for kind, one in row["boxes"]["errors"].items():
            own, other = one["cost"]["value"], baseline["boxes"]["errors"][kind]["cost"]["value"]
            difference = one["difference"]
            assert difference["value"] == pytest.approx(own - other)
            assert (difference["joint"] is None) == (row is scratch)
    assert base["boxes"]["errors"]["missed"]["difference"] is None
    (line,) = why(summary, summary["parts"][0])
    assert line.startswith(f"{EVIL} against plain-18: loses less AP50 to ")
    told = {kind: one["difference"] for kind, one in best["boxes"]["errors"].items()}
    for kind, one in told.items():
        assert (f"{kind}, " in line) == (one["joint"]["high"] < 0 or one["joint"]["low"] > 0)
    html, text = page.to_html(summary), to_markdown(summary)
    for said in (html, text):
        assert line.replace(EVIL, "") in said.replace("&#8288;", "")
        assert "arXiv:2008.08115" in said
    cost = best["boxes"]["errors"]["localisation"]["cost"]
    assert f"{100 * cost['value']:.1f} ({100 * cost['joint']['low']:.1f}–{100 * cost['joint']['high']:.1f})" in text
    assert "AP50 lost to each kind of error" in html
