"""Four steps of training: each moves what it should and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from backbone.errors import UserError
from detection import artifact
from detection.alternating import Alternating, plan
from detection.data.sources import open_sources
from detection.finetune import Detection, finetune, prepare
from tests.detection.conftest import ALONE, SMALL, Make

C4: dict[str, Any] = {
    "kind": "c4",
    "norm": "frozen",
    "freeze_at": 1,
    "anchor_sizes": [16, 32],
    "anchor_ratios": [1.0],
    "rpn": {"batch": 32, "pre_nms_train": 50, "post_nms_train": 20, "pre_nms_test": 30, "post_nms_test": 10},
    "roi": {"size": 4, "batch": 8, "detections": 5, "score": 0.01},
}


@pytest.fixture
def options(tmp_path: Path, backbone: str) -> Alternating:
    """Two optimizer steps each."""
    tree = {key: value for key, value in SMALL.items() if key != "name"} | {"detector": C4}
    tree |= {"data": {**SMALL["data"], "val_images": 2}, "schedule": {**SMALL["schedule"], "total": 2}}
    (tmp_path / "c4.yaml").write_text(yaml.safe_dump(tree))
    return Alternating(name="steps", backbone=backbone, finetune=str(tmp_path / "c4.yaml"), storage=str(tmp_path / "r"))


def group(name: str) -> str:
    """What part of a detector a tensor belongs to: shared, C5, heads or rpn."""
    if name.startswith("backbone."):
        return "C5" if ".layer4." in name else "shared"
    return "heads" if name.startswith("roi_heads.") else "rpn"


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {group(name) for name in before if not torch.equal(before[name], after[name])}


def test_each_step_moves_its_own_layers(options: Alternating) -> None:
    recipes = plan(options)
    assert [recipe.run_name for recipe in recipes] == ["steps-1-rpn", "steps-2-heads", "steps-3-rpn", "steps-4-heads"]
    states = []
    for recipe in recipes:
        payload = prepare(recipe, lambda text: None)
        if not states:
            first = Detection(payload.recipe, *open_sources(payload.recipe.data), ALONE).model.state_dict()
            states.append({name: tensor.clone() for name, tensor in first.items()})
        finetune(payload, ALONE, lambda record: None)
        states.append(load_file(Path(options.storage, recipe.run_name, "artifact/model.safetensors")))
    begun, rpn, heads, again, done = states
    assert moved(begun, rpn) == {"shared", "rpn"}
    assert moved(begun, heads) == {"shared", "C5", "heads"}  # from the backbone again, with no layer of step 1
    assert moved(heads, again) == {"rpn"}
    assert moved(again, done) == {"C5", "heads"}
    assert artifact.load(Path(options.storage, "steps-4-heads/artifact")).detector.options.freeze_at == 4


def test_heads_train_on_the_proposals_they_are_given(small: Make, options: Alternating) -> None:
    """Another proposer is another loss; the detector's own proposal network does not matter."""
    first, second, *_ = plan(options)
    finetune(prepare(first, lambda text: None), ALONE, lambda record: None)
    task = Detection(prepare(second, lambda text: None).recipe, *open_sources(second.data), ALONE)
    batch = task.train.make(range(4))

    def loss() -> float:
        torch.manual_seed(0)
        losses, parts = task.loss(dict(batch))
        assert parts.keys() == {"loss_classifier", "loss_box_reg"}
        return float(losses[0].detach())

    before = loss()
    assert loss() == before
    for model, changes in ((task.model, False), (task.proposer, True)):
        assert model is not None
        with torch.no_grad():
            for parameter in model.rpn.parameters():
                parameter.add_(torch.randn_like(parameter))
        assert (loss() != before) == changes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "rpn", "proposals": "x"}, "proposals are read with train heads only"),
        ({"train": "rpn", "run.export": "best"}, "run.export best: goes by AP, of which train rpn leaves a part"),
        ({"train": "heads"}, "a proposal network that nobody trains; give --proposals FOLDER"),
        (
            {"train": "rpn", "detector": {"kind": "retinanet", "norm": "frozen", "freeze_at": 1}},
            "has neither proposals",
        ),
    ],
)
def test_steps_that_cannot_be_meant(small: Make, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(fields)


def test_they_are_for_c4_and_take_fields_for_some_of_them(options: Alternating) -> None:
    more = options.model_copy(update={"heads_with": {"schedule": {"total": 1}}, "rpn_with": {"optim": {"lr": 0.5}}})
    assert [(one.schedule.total, one.optim.lr) for one in plan(more)] == [(2, 0.5), (1, 0.02), (2, 0.5), (1, 0.02)]
    with pytest.raises(UserError, match=r"detector\.kind fpn; four steps are for c4"):
        plan(options.model_copy(update={"finetune_with": {"detector": {**SMALL["detector"], "kind": "fpn"}}}))


def test_only_the_last_step_is_chosen_by_ap(options: Alternating) -> None:
    best = options.model_copy(update={"finetune_with": {**options.finetune_with, "run": {"export": "best"}}})
    assert [one.run.export for one in plan(best)] == ["last", "last", "last", "best"]
