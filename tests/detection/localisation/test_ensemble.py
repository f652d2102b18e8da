"""Localisers that have been trained: judged alone and together, and what they say in a submission."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from backbone.cli import validate
from backbone.errors import UserError
from backbone.training.world import World
from detection.localisation.ensemble import load, voted
from detection.localisation.evaluate import evaluate, prepare, table
from detection.localisation.options import LocaliserEvaluation
from detection.localisation.recipe import Localise
from detection.localisation.sources import OneObjectScenes
from detection.submission.options import Submission
from detection.submission.submit import prepare as prepare_submission
from detection.submission.submit import submit
from tests.detection.localisation.conftest import CLASSES, Make
from tests.detection.localisation.test_localise import place, run
from tests.detection.localisation.test_rcnn import RCNN

ALONE = World(0, 1, torch.device("cpu"))
KNOWN = ("own_class", "top1", "top5", "top5_classes")


def test_boxes_are_voted_as_a_plain_loop_votes() -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 20, (3, 20, 2, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(20, 60, (3, 20, 2, 2))], -1)
    scores = draw.uniform(0, 1, (3, 20, 2))
    found, averaged = voted(boxes, scores), 0
    for n in range(20):
        for j in range(2):
            best = max(range(3), key=lambda k: scores[k, n, j])
            some = [k for k in range(3) if iou(boxes[k, n, j], boxes[best, n, j]) >= 0.5]
            total = sum(scores[k, n, j] for k in some)
            expected = sum(scores[k, n, j] * boxes[k, n, j] for k in some) / total
            np.testing.assert_allclose(found[n, j], expected)
            averaged += len(some) > 1
    assert 5 < averaged < 35
    assert (voted(boxes[:1], scores[:1]) == boxes[0]).all()
    np.testing.assert_allclose(voted(boxes[[0, 0]], scores[[0, 0]]), boxes[0])
    assert (voted(np.zeros((2, 1, 1, 4)), np.zeros((2, 1, 1))) == 0).all()  # of images that could not be read


def iou(one: np.ndarray, two: np.ndarray) -> float:
    return float(box_iou(torch.from_numpy(one[None]), torch.from_numpy(two[None])))


@pytest.fixture
def both(where: Make) -> tuple[Localise, Localise]:
    """Recipes of a localiser and of an R-CNN on its proposals, both trained."""
    first = where({"name": "first", "schedule.total": 3})
    run(first)
    own = {"localiser": RCNN, "data.augment": {"kind": "none"}, "name": "second", "schedule.total": 3}
    second = where({**own, "proposals": str(place(first) / "artifact")})
    run(second)
    return first, second


def judged(recipe: Localise, localisers: list[str], output: Path, **fields: Any) -> dict[str, Any]:
    """By `LocaliserEvaluation`, as the recipe's own run is judged."""
    given = {"localiser": localisers, "backbone": [recipe.backbone], "output": str(output), "scales": recipe.scales}
    given["batch"] = recipe.eval_batch
    data = {"val_images": recipe.data.val_images, "workers": 0}  # ty: ignore[unresolved-attribute]
    options = validate(LocaliserEvaluation, {**given, "data": data, **fields}, "t")
    return evaluate(prepare(options, lambda text: None), ALONE, lambda record: None)


def test_alone_each_has_its_runs_errors_and_with_its_copy_too(both: tuple[Localise, Localise], tmp_path: Path) -> None:
    for recipe in both:
        artifact, copy = place(recipe) / "artifact", tmp_path / f"{recipe.name}-copy"
        shutil.copytree(artifact, copy)
        record = judged(recipe, [str(artifact), str(copy)], tmp_path / "out")
        rows = {(row["protocol"], row["of"]): row for row in record["results"]}
        assert json.loads((tmp_path / "out/results.json").read_text())["results"] == json.loads(
            json.dumps(record["results"])
        )
        for own in json.loads((place(recipe) / "results/results.json").read_text())["results"]:
            for name in (str(artifact), str(copy), "ensemble of 2"):
                row = rows[own["protocol"], name]
                assert {one: row[one] for one in KNOWN} == {one: own[one] for one in KNOWN}
            assert {one["change"] for one in rows[own["protocol"], "ensemble of 2"]["changed"].values()} == {0}
        assert table(record).count("against the first of them") == 2
    mixed = judged(both[0], [str(place(one) / "artifact") for one in both], tmp_path / "mixed")
    assert [row["of"] for row in mixed["results"]][2::3] == ["ensemble of 2"] * 2
    assert set(mixed["provenance"]["weights_sha256"]) == {
        both[0].backbone,
        *(str(place(one) / "artifact") for one in both),
    }


def test_an_rcnn_finds_the_localiser_it_was_trained_on(both: tuple[Localise, Localise], tmp_path: Path) -> None:
    first, second = (str(place(one) / "artifact") for one in both)
    (alone,) = load([second], [], CLASSES, "x")
    assert set(alone.weights) == {first, second}
    moved = tmp_path / "moved"
    shutil.move(first, moved)
    with pytest.raises(UserError, match=r"what its recipe names as proposals is not read; give .* --proposals FOLDER"):
        load([second], [], CLASSES, "x")
    (found,) = load([second], [str(moved)], CLASSES, "x")
    assert set(found.weights) == {str(moved), second}
    with pytest.raises(UserError, match=r"proposals .*moved: no localiser given was trained on them; leave it out"):
        load([str(moved)], [str(moved)], CLASSES, "x")
    with pytest.raises(UserError, match=r"second/artifact: its classes are not those of x"):
        load([second], [str(moved)], CLASSES[::-1], "x")


def test_results_lie_where_their_makings_say(both: tuple[Localise, Localise], tmp_path: Path) -> None:
    """Each other way to judge has a folder of its own, and the same nets under other names have the same."""
    first, second = (place(one) / "artifact" for one in both)

    def named(*localisers: Path | str, **fields: Any) -> str:
        data = {"val_images": 4, "workers": 0, **fields.pop("data", {})}
        told = {"localiser": [*map(str, localisers)], "backbone": [both[0].backbone], "data": data, **fields}
        return Path(prepare(validate(LocaliserEvaluation, told, "t"), lambda text: None).url).name

    usual = named(first)
    copied = shutil.copytree(both[0].backbone, tmp_path / "net"), shutil.copytree(first, tmp_path / "copy")
    assert named(f"{first}/") == named(copied[1]) == named(first, backbone=[str(copied[0])]) == usual
    assert named(first, batch=3) == named(first, protocols=["1-crop", "dense"]) == usual
    every = [
        usual,
        named(first, scales=[224, 256]),
        named(first, scales=[256, 224]),
        named(first, protocols=["dense"]),
        named(first, by_position=True),
        named(first, compute={"precision": "bf16"}),
        named(first, data={"val_images": 5}),
        named(second),
        named(second, first),
        named(first, second),
    ]
    assert len({*every}) == len(every)


def test_a_submission_says_what_the_run_says(both: tuple[Localise, Localise], tmp_path: Path) -> None:
    """Of the R-CNN's dense testing, image by image, its classes and boxes, as the test server wants them."""
    recipe = both[1]
    told = json.loads((place(recipe) / "results/guesses.json").read_text())
    scenes, folder = OneObjectScenes(0, len(told), 48, "val"), tmp_path / "images"
    folder.mkdir()
    for i in range(len(told)):  # PNG inside, whatever the name
        (folder / f"{i:03}.JPEG").write_bytes(cv2.imencode(".png", scenes.image(i)[:, :, ::-1])[1].tobytes())
    (tmp_path / "synsets").write_text("".join(f"{name} {k}\n" for k, name in enumerate(CLASSES, 1)))
    given = {
        "backbone": [recipe.backbone],
        "localiser": [str(place(recipe) / "artifact")],
        "images": str(folder),
        "synsets": str(tmp_path / "synsets"),
        "output": str(tmp_path / "entry"),
        "scales": recipe.scales,
        "batch": recipe.eval_batch,
        "loaders": 0,
    }
    payload = prepare_submission(validate(Submission, given, "t"), lambda text: None)
    submit(payload, ALONE, lambda record: None)
    read = np.loadtxt(tmp_path / "entry/predictions.txt").reshape(len(told), 5, 5)
    for image, line in zip(told, read, strict=True):
        for guess, (number, x1, y1, x2, y2) in zip(image["guesses"], line.tolist(), strict=True):
            assert CLASSES[int(number) - 1] == guess["class"]
            np.testing.assert_allclose([x1 - 1, y1 - 1, x2, y2], guess["box"], atol=0.011)
