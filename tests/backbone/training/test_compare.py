"""Runs side by side: which are one net trained again, what they say together, and the picture."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbone.errors import UserError
from backbone.training.compare import read, repeats, table, title
from backbone.training.curves import draw_overlay

# The five of Table 6 that a best of 6.43 and 6.61 +- 0.16 allow.
ERRORS = (6.43, 6.50, 6.58, 6.72, 6.82)


def write(folder: Path, error: float, seed: int = 0, kind: str = "raybone", data: str = "a", **fields: Any) -> str:
    """A finished run as jobs leave it, as far as it is read here."""
    (folder / "artifact").mkdir(parents=True)
    identity = {"seed": seed, "optim.lr": 0.1, "model.depth": 110, **fields}
    (folder / "run.json").write_text(json.dumps({"identity": identity, "data": {"train data": data}}))
    history = [{"step": s, "error": 90.0 - s} for s in range(0, 60, 5)]
    history += [{"step": 59, "val_error": error}]
    (folder / "history.json").write_text(json.dumps(history))
    config = {kind: {"provenance": {"metrics": {"val_error": error}}}}
    (folder / "artifact" / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_best_mean_and_deviation_are_those_of_table_6(tmp_path: Path) -> None:
    """ "6.43 (6.61 +- 0.16)" of ResNet-110, five times."""
    urls = [write(tmp_path / f"resnet110-{i}", error, seed=i) for i, error in enumerate(ERRORS)]
    urls.append(write(tmp_path / "other", 8.75, **{"optim.lr": 0.2}))
    groups = repeats([read(url) for url in urls])
    assert [[run.name for run in group] for group in groups] == [[f"resnet110-{i}" for i in range(5)], ["other"]]
    said = table(groups).splitlines()
    assert said[0] == "resnet110-0  6.43 % top-1 error"
    assert said[5] == "resnet110, 5 trainings: best 6.43 %, mean 6.61 +- 0.16 % (standard deviation of one)"
    assert said[6] == "other        8.75 % top-1 error"
    assert len(said) == 7


def test_other_data_is_another_net_but_for_scenes_which_are_the_seeds(tmp_path: Path) -> None:
    for source, groups in (("parquet", 2), ("synthetic", 1)):
        urls = [write(tmp_path / f"{source}{i}", 5.0, i, data=f"{i}", **{"data.source": source}) for i in range(2)]
        assert len(repeats([read(url) for url in urls])) == groups


CALLED = [
    (["a-0", "a-11"], "a"),
    (["vgg16-seed0", "vgg16-seed1"], "vgg16"),
    (["resnet110"], "resnet110"),
    (["1", "2"], "1"),
    (["x1", "y1"], "x1"),
]


@pytest.mark.parametrize(("names", "said"), CALLED)
def test_groups_are_called_by_what_their_names_share(names: list[str], said: str, tmp_path: Path) -> None:
    assert title([read(write(tmp_path / name, 5.0)) for name in names]) == said


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--runs .*/nothing: no run here"):
        read(str(tmp_path / "nothing"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"--runs .*/begun: has not finished; submit it again"):
        read(str(tmp_path / "begun"))
    with pytest.raises(UserError, match=r"is a detector's run; jobs/gains.py"):
        read(write(tmp_path / "detector", 0.1, kind="raybone_detector"))


def pixels(curves: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_overlay(curves))))[..., :3]


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(image.astype(int) - colour) < 40).all(-1).sum())


def test_two_runs_are_two_colours_training_thin_validation_bold() -> None:
    line = [{"step": s, "error": 60.0, "val_error": 30.0} for s in range(0, 100)]
    other = [{"step": s, "error": 80.0, "val_error": 50.0} for s in range(0, 100)]
    blue, orange = (31, 119, 180), (255, 127, 14)  # matplotlib's first two
    one, both = pixels([("a", [line])]), pixels([("a", [line]), ("b", [other])])
    assert count(one, blue) > 500
    assert count(one, orange) == 0
    assert count(both, orange) > 500
    thin = pixels([("a", [[{"step": r["step"], "error": 60.0} for r in line]])])
    bold = pixels([("a", [[{"step": r["step"], "val_error": 60.0} for r in line]])])
    assert count(bold, blue) > 2 * count(thin, blue)
