"""A training step gives the device its work and never waits for it."""

import torch

from backbone.data.stream import MicroBatches
from backbone.training.engine import Trainer
from backbone.training.meter import Meter
from backbone.training.pretrain import Classification
from tests.backbone.training.test_engine import ALONE, CONVENTIONS, SOURCES, Make
from tests.waits import waits


def test_a_step_never_waits(tiny: Make) -> None:
    modern = {"kind": "modern", "policy": "trivial", "mixup": 0.2, "cutmix": 1.0, "erasing": 0.1}
    recipe = tiny(
        {
            "optim.micro_batch": 8,
            "optim.ema": 0.9,
            "optim.clip": 1.0,
            "optim.label_smoothing": 0.1,
            "data.augment": modern,
        }
    )
    task = Classification(recipe, CONVENTIONS["imagenet"], *SOURCES, ALONE)
    trainer, meter = Trainer(task, recipe.optim, recipe.compute, 0, ALONE), Meter(ALONE, recipe.optim.batch)
    micro_batches = MicroBatches(recipe.optim.batch, 8, 0, 1, 0, 2)
    batches = list(task.batches(micro_batches))
    begun = iter(batches)
    assert waits(lambda: trainer.step(begun, micro_batches, 0.01, 0, meter, measures=True)) == 0


def test_waits_are_noticed() -> None:
    mask = torch.tensor([True, False, True])
    assert waits(lambda: mask.nonzero()) == 1
    assert waits(lambda: torch.ones(3)[mask]) == 1
    assert waits(lambda: mask.sum().item()) == 1
    assert waits(lambda: mask.tolist()) == 1
    assert waits(lambda: torch.nonzero_static(mask, size=2)) == 0
