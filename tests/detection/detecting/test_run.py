"""Detecting in many images: the evaluation's numbers in stock tools, the same bytes however it is done, and errors."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbone.errors import UserError
from detection import scoring
from detection.detecting.options import Detecting
from detection.detecting.run import detect_all
from tests.detection.conftest import write_scenes
from tests.detection.test_voc_ap import devkit


def results(folder: Path) -> dict[str, bytes]:
    """All that a finished run leaves but for what it says of itself."""
    assert not (folder / "parts").exists()
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "detect.json"}


def test_stock_tools_give_the_evaluation_s_ap(trained: Path, tmp_path: Path) -> None:
    """pycocotools on the JSON, and the devkit's rules on the files of competition 4, each object and image by name."""
    metrics = json.loads((trained / "results" / "metrics.json").read_text())
    truth_file, out = trained / "results" / "ground_truth.json", tmp_path / "out"
    folder = metrics["provenance"]["recipe"]["data"]["val"]
    detect_all(
        Detecting(detector=str(trained / "artifact"), images=str(truth_file), image_folder=folder, output=str(out))
    )
    written = json.loads((trained / "results" / "detections.json").read_text())
    assert json.loads((out / "detections.json").read_text()) == written
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(out / "images.json")).loadRes(str(out / "detections.json"))
        truth = COCO(str(truth_file))
        scores = COCOeval(truth, truth.loadRes(str(out / "detections.json")), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    stats = [-1 if metrics["bbox"][name] is None else metrics["bbox"][name] for name in scoring.STATS]
    np.testing.assert_allclose(scores.stats, stats, rtol=0, atol=1e-12)
    assert metrics["bbox"]["AP"] > 0.03

    tree = json.loads(truth_file.read_text())
    ids = {Path(image["file_name"]).stem: image["id"] for image in tree["images"]}
    for category in tree["categories"]:
        rows = []
        for line in (out / f"comp4_det_test_{category['name']}.txt").read_text().splitlines():
            name, score, *corners = line.split()
            x1, y1, x2, y2 = map(float, corners)
            box = [round(side, 3) for side in (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)]
            row = {"image_id": ids[name], "category_id": category["id"], "bbox": box, "score": float(score)}
            rows.append(row)
        assert rows == [row for row in written if row["category_id"] == category["id"]]
        expected = metrics["voc"]["per_class"][category["name"]]
        found = devkit(tree, rows, category["id"])
        assert found is not None
        np.testing.assert_allclose([float(found[0]), float(found[1])], [expected["AP"], expected["AP07"]], atol=1e-9)


def stopping_after(lines: int) -> Callable[[str], None]:
    """Something to be told what goes on, and which then stops it as Ctrl-C would."""
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if len(told) == lines:
            raise KeyboardInterrupt

    return say


def photos(root: Path) -> Path:
    """Nine images in folders, one of them no image, one file of another kind, and a hidden one."""
    folder = write_scenes(root, "in", 9)
    (folder / "sub").mkdir()
    for i in (4, 5):
        (folder / f"{i}.jpg").rename(folder / "sub" / f"a photo {i}.jpg")
    (folder / "3.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def undisturbed(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and what a run at one go has written of them."""
    root = tmp_path_factory.mktemp("undisturbed")
    folder = photos(root)
    asked = Detecting(detector=str(detector), images=str(folder), output=str(root / "out"), min_score=0.25)
    done = detect_all(asked, lambda text: None)
    assert (done.images, len(done.unreadable)) == (8, 1)
    assert "3.jpg: not an image" in done.as_text()
    return folder, root / "out"


def again(undisturbed: tuple[Path, Path], detector: Path, output: Path, **fields: Any) -> Detecting:
    return Detecting(
        detector=str(detector), images=str(undisturbed[0]), output=str(output), **{"min_score": 0.25, **fields}
    )


def test_what_is_written(undisturbed: tuple[Path, Path]) -> None:
    _, out = undisturbed
    tree, found = (json.loads((out / name).read_text()) for name in ("images.json", "detections.json"))
    assert [image["file_name"] for image in tree["images"]][-3:] == ["8.jpg", "sub/a photo 4.jpg", "sub/a photo 5.jpg"]
    assert [image["id"] for image in tree["images"]] == [1, 2, 3, 5, 6, 7, 8, 9]  # 4 is not read
    assert {row["category_id"] for row in found} <= {7, 3, 20}
    sizes = {image["id"]: [image["height"], image["width"]] for image in tree["images"]}
    for row in found:
        assert list(rle.decode(row["segmentation"]).shape) == sizes[row["image_id"]]
    lines = [line for path in out.glob("comp4_det_test_*.txt") for line in path.read_text().splitlines()]
    assert len(lines) == len(found) > 20
    assert {len(line.split(" ")) for line in lines} == {6}
    assert any(line.startswith("sub/a%20photo%205 ") for line in lines)
    names = {path.name for path in out.glob("comp4*")}
    assert names == {f"comp4_det_test_{name}.txt" for name in ("cat", "traffic light", "a_b")}
    assert "3.jpg: not an image" in (out / "unreadable.txt").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len({row["image_id"] for row in found if row["score"] >= 0.25}) > 3
    assert '<path class="c' in page
    assert "1 image could not be read" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_stopped_and_gone_on_with_in_other_parts(
    undisturbed: tuple[Path, Path], detector: Path, tmp_path: Path
) -> None:
    """What is done is not done again, and no byte tells."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        detect_all(again(undisturbed, detector, out, images_per_part=2), stopping_after(5))
    parts = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert 1 <= len(parts) < 5
    assert not (out / "detections.json").exists()
    told: list[str] = []
    detect_all(again(undisturbed, detector, out, images_per_part=5), told.append)
    assert told[:2] == [f"{out}: goes on", f"{2 * len(parts)} of 9 images are done"]
    assert results(out) == results(undisturbed[1])


def test_submitted_again_it_is_complete(undisturbed: tuple[Path, Path], detector: Path) -> None:
    """But the page, which is made anew where it is asked for otherwise."""
    out = undisturbed[1]
    before = results(out)
    told: list[str] = []
    done = detect_all(again(undisturbed, detector, out, pictures=2), told.append)
    assert told == [f"{out}: is complete"]
    assert done.images == 8
    after = results(out)
    assert {name for name in before if before[name] != after[name]} == {"report.html"}
    assert after["report.html"].count(b"<svg") == 2
    assert b"Spread evenly over the images that have some; nobody" in after["report.html"]
    detect_all(again(undisturbed, detector, out, min_score=1.0), lambda text: None)
    assert b"over all images, for none has one: a lower --min_score shows more" in (out / "report.html").read_bytes()
    detect_all(again(undisturbed, detector, out), told.append)
    assert results(out) == before


@pytest.mark.ray
def test_three_workers_write_the_same_bytes(
    undisturbed: tuple[Path, Path], detector: Path, tmp_path: Path, ray_cluster: Any
) -> None:
    detect_all(again(undisturbed, detector, tmp_path / "out", num_workers=3, images_per_part=2), lambda text: None)
    assert results(tmp_path / "out") == results(undisturbed[1])


def test_other_results_are_not_mixed_in(undisturbed: tuple[Path, Path], detector: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path, "other", 1)
    with pytest.raises(UserError, match=r"another run; name another --output.*number of images: 9 there, 1 now"):
        detect_all(Detecting(detector=str(detector), images=str(other), output=str(undisturbed[1])), lambda text: None)
    (other / "draft.tmp").write_text("x")
    with pytest.raises(UserError, match=r"holds \S+, which is not of this job; name another --output"):
        detect_all(again(undisturbed, detector, other), lambda text: None)
    assert (other / "draft.tmp").exists()


def test_an_output_that_cannot_be_written(undisturbed: tuple[Path, Path], detector: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written"):
        detect_all(again(undisturbed, detector, tmp_path / "file" / "out"), lambda text: None)


def test_nothing_readable(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no image")
    asked = Detecting(detector=str(detector), images=str(tmp_path / "in"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"none of the 1 images can be read: .*a\.jpg: not an image"):
        detect_all(asked)
    assert not (tmp_path / "out").exists()


def test_a_relative_output_of_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray runs it in a copy of the working directory, which it throws away."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"output 'found' is relative.*--output /shared/found"):
        detect_all(Detecting(detector="a", images="b", output="found"))
