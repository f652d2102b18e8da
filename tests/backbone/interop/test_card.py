"""The card is one that Hugging Face reads, with what was trained, how it is loaded and what was checked."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from backbone.interop.export import export
from backbone.options import NetOptions


@pytest.fixture(scope="module")
def folder(artifact_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    export(str(artifact_of(NetOptions(depth=18))), "mmdetection", str(out), license="cc-by-nc-4.0")
    return out


def test_the_front_matter(folder: Path) -> None:
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (head["license"], head["library_name"]) == ("cc-by-nc-4.0", "mmdetection")
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "/data/pets/val", "type": "imagefolder"}
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1", "value": 0.875}]


def test_hugging_face_reads_it(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="its ModelCard reads the card")
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.eval_results[0].metric_value == 0.875


def test_the_text(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for part in ("## Load", "## Input", "## Intended use", "## Training", "## Checked"):
        assert part in text
    assert "imagefolder /data/pets/train" in text
    assert "read back by raybone" in text
    assert f"{folder}/backbone.pth" in text
    sums = {name: value for value, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)}
    assert set(sums) == {"backbone.pth", "backbone.py", "raybone.json"}
    for name, value in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
