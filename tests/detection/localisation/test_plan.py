"""The plan of a localiser: right about net, data, steps and batch; refuses what the run would; writes nothing."""

from pathlib import Path

import pytest

from backbone.cli import read_yaml, validate
from backbone.errors import UserError
from detection.localisation.plan import describe
from detection.localisation.recipe import Localise
from tests.detection.localisation.conftest import write_classifier


def test_the_plan_says_what_will_be_done(tmp_path: Path) -> None:
    given = {
        "backbone": write_classifier(tmp_path / "net"),
        "run.storage": str(tmp_path / "runs"),
        "data.train_images": 100,
        "data.val_images": 8,
        "optim.batch": 16,
        "optim.micro_batch": 8,
        "schedule.total": 2,
        "scaling.num_workers": 2,
        "compute.precision": "fp32",
    }
    tree = read_yaml("quickstart/localiser.yaml")
    text = describe(validate(Localise, tree, "localiser.yaml", given))
    told = {line[:11].strip(): line[11:] for line in text.splitlines()}
    assert told["run"] == str(tmp_path / "runs/localiser")
    assert told["images"].startswith("100 training, 8 validation (synthetic)")
    assert told["steps"] == "13 of 16 images: 2.1 epochs"
    assert told["batch"] == "16 = 8 a micro-batch x 1 accumulated x 2 worker(s)"
    assert "12 classes x 3 anchors" in told["localiser"]
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="do not split"):
        describe(validate(Localise, tree, "localiser.yaml", {**given, "scaling.num_workers": 3}))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        describe(validate(Localise, tree, "localiser.yaml", {**given, "backbone": str(tmp_path)}))
