"""A net of timm as a classifier that is judged and looked into."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("timm", reason="timm builds the net")

from backbone import artifact
from backbone.analyse.analysis import analyse
from backbone.analyse.measures import gradient_norms
from backbone.analyse.options import Analysis
from backbone.data.options import SyntheticData
from backbone.data.synthetic import CLASSES
from backbone.errors import UserError
from backbone.evaluate.evaluation import evaluate, prepare
from backbone.evaluate.options import BackboneEvaluation
from backbone.interop.importing import run
from backbone.interop.options import Import
from backbone.training.world import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the artifact of one whose batch norms hold no activation."""
    root = tmp_path_factory.mktemp("net")
    (root / "classes").write_text("\n".join(CLASSES))
    given = {"source": "timm", "model": "resnet26", "random": True, "classes": str(root / "classes"), "size": 64}
    run(Import.model_validate(given | {"output": str(root / "artifact"), "arguments": {"base_width": 8}}))
    return str(root / "artifact")


def test_it_is_judged(net: str, tmp_path: Path) -> None:
    data = SyntheticData(val_images=12, workers=0)
    given = {"backbone": (net,), "data": data, "output": str(tmp_path), "batch": 8}
    results = evaluate(prepare(BackboneEvaluation(**given), lambda text: None), ALONE, lambda record: None)
    assert results["images"] == 12
    assert [(row["net"], row["shortcut"]) for row in results["results"]] == [("resnet26", "")]
    with pytest.raises(UserError, match=r"only raybone's own nets are fully convolutional; leave multi-scale out"):
        prepare(BackboneEvaluation(**given, protocols=("multi-scale",)), lambda text: None)


def test_it_is_looked_into(net: str, tmp_path: Path) -> None:
    asked = Analysis(backbone=(net,), depths=(), images=4, output=str(tmp_path / "out"), data=SyntheticData(workers=0))
    analyse(asked)
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    units = [f"model.layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [row["unit"] for row in record["gradients"][0]["units"]] == units
    assert [row["layer"] for row in record["responses"][0]["layers"]] == [f"{unit}.conv2" for unit in units]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"gradients.png", "responses.png"}


def test_gradients_are_autograds(net: str) -> None:
    backbone = artifact.load(net)[0]
    x, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    rows = gradient_norms(backbone, x, labels)
    model = backbone.model.train()
    F.cross_entropy(model(x), labels, reduction="sum").backward()
    weights = [m.weight.grad for m in model.layer2[1].modules() if isinstance(m, torch.nn.Conv2d)]
    expected = torch.stack([g.double().square().sum() for g in weights]).sum().sqrt() / 3
    assert rows[3]["unit"] == "model.layer2.1"
    assert rows[3]["weights"] == pytest.approx(expected.item(), rel=1e-4)


def test_where_there_are_no_responses_the_rest_is_told(tmp_path: Path) -> None:
    (tmp_path / "classes").write_text("\n".join(CLASSES))
    given = {"source": "timm", "model": "test_convnext", "random": True, "classes": str(tmp_path / "classes")}
    run(Import.model_validate(given | {"output": str(tmp_path / "net")}))
    asked = {"backbone": (str(tmp_path / "net"),), "depths": (), "images": 4, "output": str(tmp_path / "out")}
    record = analyse(Analysis(**asked, data=SyntheticData(workers=0)))
    assert "test_convnext: its BN has the activation in it" in record["without_responses"][str(tmp_path / "net")]
    assert len(record["gradients"][0]["units"]) == 1 + 2 + 4 + 2
    assert not record["responses"]
