"""The sweep's recipe: what is varied, what is looked for, and how much it may cost. Imports nothing slow."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from backbone.kinds import OneOf
from backbone.options import Seed, Strict
from backbone.sweep.record import Objective

OBJECTIVES = {
    "val_error": Objective("val_error", "min", "validation error (%)"),
    "AP": Objective("AP", "max", "detection AP"),
    "AP_masks": Objective("AP_masks", "max", "segmentation AP"),
    "macs": Objective("macs", "min", "multiply-adds an image"),
    "params": Objective("params", "min", "parameters"),
    "latency_ms": Objective("latency_ms", "min", "latency of one image (ms)"),
    "device_hours": Objective("device_hours", "min", "training cost (device-hours)"),
}


class Distribution(Strict):
    """The values a field takes: exactly one of the four."""

    choice: tuple[Any, ...] = ()
    """Any values the field can have; for a whole section, mappings: {kind: steps, milestones: [20, 30]}."""

    uniform: tuple[float, ...] = ()
    """[low, high]: any number between them."""

    loguniform: tuple[float, ...] = ()
    """[low, high]: any number between them, evenly in the logarithm."""

    integers: tuple[int, ...] = ()
    """[low, high] or [low, high, step], both ends included."""

    @model_validator(mode="after")
    def _possible(self) -> "Distribution":
        given = [kind for kind in ("choice", "uniform", "loguniform", "integers") if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of choice, uniform, loguniform, integers, not {len(given)}")
        if self.choice:
            if any(self.choice.count(value) > 1 for value in self.choice):
                raise ValueError(f"choice {list(self.choice)}: each value once")
            return self
        ends = getattr(self, given[0])
        if len(ends) not in ((2, 3) if self.integers else (2,)) or ends[0] >= ends[1]:
            raise ValueError(f"{given[0]} {list(ends)}: the range is empty; give [low, high] with low below high")
        if self.loguniform and ends[0] <= 0:
            raise ValueError(f"loguniform {list(ends)}: must lie above 0")
        if len(ends) == 3 and not 0 < ends[2] <= ends[1] - ends[0]:
            raise ValueError(f"integers {list(ends)}: the step must be from 1 to {ends[1] - ends[0]}")
        return self

    @property
    def values(self) -> list[Any] | None:
        """All values, or None where there are endlessly many."""
        if self.choice:
            return list(self.choice)
        if self.integers:
            low, high, step = (*self.integers, 1)[:3]
            return list(range(low, high + 1, step))
        return None


class _Scheduler(Strict):
    """Which trials go on."""

    kind: str


class Asha(_Scheduler):
    """Successive halving without waiting (arXiv:1810.05934)."""

    kind: Literal["asha"] = "asha"
    """asha: at every rung, all but the best of those that got there are stopped."""

    grace: float = Field(1, gt=0)
    """Epochs of the first rung, for a trial of the shortest schedule; the next are times `reduction` each. Longer
    trials get there at the same shares of their own schedules."""

    reduction: int = Field(3, ge=2)
    """One of so many goes on."""


class Pbt(_Scheduler):
    """Population-based training (arXiv:1711.09846)."""

    kind: Literal["pbt"] = "pbt"
    """pbt: the worst take over the weights of the best and go on with another learning rate (base recipe: schedule.kind
    constant; space: optim.lr alone)."""

    every: float = Field(1, gt=0)
    """Epochs between two exchanges."""

    share: float = Field(0.25, gt=0, le=0.5)
    """The share of trials that takes over, and of those taken from."""


class AllGoOn(_Scheduler):
    """No trial is stopped."""

    kind: Literal["none"] = "none"
    """none: all."""


Scheduler = Annotated[Asha | Pbt | AllGoOn, OneOf()]


class Budget(Strict):
    """What ends a sweep before all its trials are done. Running trials stop at once and wait for a
    larger one."""

    trials: int = Field(16, ge=0)
    """Points to try. 0, with search grid: all of them."""

    device_hours: float = Field(0.0, ge=0)
    """Hours of training times devices (GPUs with use_gpu, else workers), over all trials. 0: no limit."""

    hours: float = Field(0.0, ge=0)
    """Hours the sweep may take, all attempts together. 0: no limit."""


class Sweep(Strict):
    """Search depth, schedule or any other field of a recipe. A YAML file gives the fields (--config FILE).

    The space is in the file: `space: {model.depth: {choice: [18, 34]}, optim.lr: {loguniform: [0.01, 0.3]}}`. Fields of
    the recipes named there can be replaced: --base_with.data.train DIR, --finetune_with.optim.lr 0.01.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The sweep. Submitting it again goes on with it."""

    base: str
    """Recipe of jobs/pretrain.py that every trial starts from. Its `scaling` is what one trial takes."""

    base_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the base recipe: --base_with.data.train /data/imagenet/train."""

    space: dict[str, Distribution] = Field(default_factory=dict)
    """Field of the recipe, or a whole section -> its values."""

    objectives: tuple[Literal["val_error", "AP", "AP_masks", "macs", "params", "latency_ms", "device_hours"], ...] = (
        "val_error",
    )
    """What is looked for. The first decides which trial is the best, all together which are on the Pareto front."""

    finetune: str = ""
    """Objectives AP and AP_masks: recipe of jobs/finetune.py that every finished trial's backbone goes through."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of that recipe."""

    search: Literal["random", "grid", "tpe"] = "random"
    """How points are chosen. tpe: Optuna's, from what finished trials have shown."""

    seed: Seed = 0
    """Of the search. All trials are trained with the base recipe's."""

    scheduler: Scheduler = Asha()
    budget: Budget = Budget()

    parallel: int = Field(0, ge=0)
    """Most trials at a time. 0: as many as the cluster has room for."""

    storage: str = "runs"
    """Folder or URL of the sweep, seen by every node. The sweep is `<storage>/<name>`."""

    keep_checkpoints: int = Field(1, ge=0)
    """How many of the best finished trials keep checkpoints and not their artifact alone."""

    @model_validator(mode="after")
    def _possible(self) -> "Sweep":
        if not self.space:
            raise ValueError("space: name at least one field and its values")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives {list(self.objectives)}: give at least one, each once")
        if bool({"AP", "AP_masks"} & {*self.objectives}) != bool(self.finetune):
            raise ValueError(
                "objectives AP and AP_masks need finetune, a recipe of jobs/finetune.py, and nothing else reads it"
            )
        for field in self.space:
            inside = [other for other in self.space if other.startswith(f"{field}.")]
            if inside:
                raise ValueError(f"space: {inside[0]} lies inside {field}; vary one of the two")
        if self.search == "grid":
            endless = [field for field, values in self.space.items() if values.values is None]
            if endless:
                raise ValueError(f"search grid: {', '.join(endless)} has no end of values; give choice or integers")
        elif not self.budget.trials:
            raise ValueError("budget.trials 0 means all points, which search grid has; say how many")
        if isinstance(self.scheduler, Pbt):
            if list(self.space) != ["optim.lr"] or self.search != "random":
                raise ValueError("scheduler pbt changes optim.lr as it goes: space holds that alone, search is random")
            if not (self.space["optim.lr"].uniform or self.space["optim.lr"].loguniform):
                raise ValueError("scheduler pbt: optim.lr needs uniform or loguniform")
            if self.objectives != ("val_error",):
                raise ValueError("scheduler pbt goes by val_error; name no other objective")
        return self
