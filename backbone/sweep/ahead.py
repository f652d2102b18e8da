"""What is known of a sweep before anything is trained: its mistakes, its points, its rungs, and what it will hold."""

import itertools
import math

from backbone.data.options import SyntheticData
from backbone.errors import UserError
from backbone.nets import build
from backbone.nets.count import macs, parameters
from backbone.nets.meta import on_meta
from backbone.sweep.options import AllGoOn, Asha, Pbt, Sweep
from backbone.sweep.space import Point, base_tree, check, grid, random_points, recipe_at, size
from backbone.training import schedule
from backbone.training.pretrain import open_data
from backbone.training.recipe import ConstantSchedule, Recipe
from backbone.training.run import check_split, first_micro_batch


class Ahead:
    """A sweep that was checked. Writes nothing."""

    def __init__(self, sweep: Sweep) -> None:
        """Check it.

        Raises:
            UserError: a bad space, base recipe or data; points that cannot be trained.
        """
        self.sweep, self.tree = sweep, base_tree(sweep)
        self.base = recipe_at(sweep, self.tree, {})
        _check_base(sweep, self.base)
        train, val = open_data(self.base.data, self.base.seed)
        self.num_train, self.num_val, self.num_classes = len(train), len(val), len(train.classes)
        recipes = check(sweep)
        for recipe in recipes:
            _check_batch(recipe)
        kinds = sorted({recipe.schedule.kind for recipe in recipes})
        if isinstance(sweep.scheduler, Asha) and len(kinds) > 1:
            raise UserError(
                f"space: schedules of kinds {' and '.join(kinds)}: asha compares trials midway, where the rate of one "
                "is still high and another's is not; let all go on (--scheduler.kind none), or sweep each by itself"
            )
        nets = {recipe.model.model_dump_json(): recipe for recipe in recipes}
        self.state_bytes = 4 * max(self.cost(recipe)["params"] for recipe in nets.values())
        self.least_epochs = min(self.steps(recipe).epochs for recipe in recipes)

    def points(self) -> list[Point]:
        """Those that will be tried; where tpe is to choose, as many random ones in their place."""
        space, seed = self.sweep.space, self.sweep.seed
        found = grid(space) if self.sweep.search == "grid" else random_points(space, seed)
        return list(itertools.islice(found, self.sweep.budget.trials or None))

    def rungs(self) -> list[float]:
        """See `Record.rungs`."""
        scheduler, rungs = self.sweep.scheduler, []
        if isinstance(scheduler, Asha):
            rung = scheduler.grace / self.least_epochs
            while rung < 1:
                rungs.append(rung)
                rung *= scheduler.reduction
        return rungs

    def disk_bytes(self, places: int) -> float:
        """The most the sweep will hold: artifacts of all trials, checkpoints of those that run, `places` at a time, and
        of the best."""
        run = self.base.run
        checkpoint = self.state_bytes * self.base.optim.copies
        trials = self.sweep.budget.trials or size(self.sweep.space)
        holding = places * (run.keep + 2) + self.sweep.keep_checkpoints * (run.keep + 1)
        return trials * self.state_bytes + holding * checkpoint

    def images(self, recipe: Recipe) -> tuple[int, int]:
        """How many a trial trains on, and is judged by."""
        if isinstance(recipe.data, SyntheticData):
            return recipe.data.train_images, recipe.data.val_images
        return self.num_train, self.num_val

    def steps(self, recipe: Recipe) -> schedule.Steps:
        """A trial's schedule."""
        return schedule.in_steps(recipe.schedule, recipe.optim.batch, self.images(recipe)[0])

    def cost(self, recipe: Recipe) -> dict[str, float]:
        """`params` and `macs` (forward multiply-adds of an image) of a trial's net."""
        with on_meta():
            net = build(recipe.model, self.num_classes)
        return {"params": parameters(net), "macs": macs(net, recipe.data.size)}


def _check_base(sweep: Sweep, base: Recipe) -> None:
    if not base.scaling.num_workers:
        raise UserError(f"{sweep.base}: scaling.num_workers 0: a trial is a run on Ray; give at least 1")
    match scheduler := sweep.scheduler:
        case Asha():
            grace = scheduler.grace
        case Pbt():
            grace = scheduler.every
        case AllGoOn():
            grace = math.inf
    if base.run.eval_every > grace:
        raise UserError(
            f"{sweep.base}: run.eval_every {base.run.eval_every} epochs is above the scheduler's "
            f"{grace:g}: it would judge too late; --base_with.run.eval_every 1"
        )
    fixed = isinstance(base.schedule, ConstantSchedule) and not base.schedule.warmup
    if isinstance(scheduler, Pbt) and not fixed:
        raise UserError(
            f"{sweep.base}: scheduler pbt makes the schedule itself: it needs schedule.kind constant without warmup"
        )


def _check_batch(recipe: Recipe) -> None:
    """UserError where its batch does not split over the workers."""
    micro_batch = recipe.optim.micro_batch or first_micro_batch(recipe)
    check_split(recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"micro_batch": micro_batch})}))
