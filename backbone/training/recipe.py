"""The recipe: everything a training run is, typed and strict. Imports nothing slow: errors come at once.

`TrainingRecipe` is what every run has; `Recipe` adds what pretraining needs, `detection.recipe.Finetune` what detectors
need.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backbone.compute import Compute, Scaling
from backbone.data.options import Data, ModernAugment, Progressive, StoredData, SyntheticData
from backbone.kinds import OneOf
from backbone.options import NetOptions, Seed, Strict


class Optim(Strict):
    """The optimizer, and what surrounds a step."""

    kind: Literal["sgd", "adamw", "lamb"] = "sgd"
    """sgd: with momentum. adamw: arXiv:1711.05101. lamb: arXiv:1904.00962, whose authors clip at 1."""

    batch: int = Field(256, ge=1)
    """Samples of one optimizer step, over all workers. The contract of a run: it never changes with the cluster."""

    micro_batch: int = Field(0, ge=0)
    """Samples that go through the net at once. It is the unit batch statistics are computed over, so it stays what it
    was when a run is resumed on another number of workers. 0: batch / workers at the first start."""

    lr: float = Field(0.1, gt=0)
    """Peak learning rate at `lr_batch` samples a step; scaled linearly to `batch`."""

    lr_batch: int = Field(256, ge=0)
    """The batch `lr` was given for. 0: take lr as it is."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """sgd: what is kept of the last step's direction."""

    nesterov: bool = False
    """sgd: look ahead along the momentum (Nesterov's)."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """adamw, lamb: what is kept, each step, of the averages of the gradient and of its square."""

    weight_decay: float = Field(1e-4, ge=0)
    """sgd: L2 penalty, added to the gradient. adamw: decoupled from it. lamb: likewise, before the step is scaled."""

    decay: Literal["all", "conv", "no_norm_bias"] = "all"
    """What weight decay reaches: every parameter, weights of convolutions alone, or all but norms and biases."""

    clip: float = Field(0.0, ge=0)
    """Largest norm of the whole gradient. 0 is off."""

    ema: float = Field(0.0, ge=0, lt=1)
    """Decay a step of the weights' moving average, which is then judged and exported; lower in the first steps, see
    `optimizer.average_decay`. 0 is off."""

    @model_validator(mode="after")
    def _possible(self) -> "Optim":
        if self.micro_batch and self.batch % self.micro_batch:
            fits = [m for m in range(1, self.batch + 1) if self.batch % m == 0]
            near = sorted(fits, key=lambda m: abs(m - self.micro_batch))[:3]
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch {self.batch}; near it: {sorted(near)}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        for field in ("momentum", "nesterov") if self.kind != "sgd" else ("betas",):
            if getattr(self, field) != Optim.model_fields[field].default:
                raise ValueError(f"{field} is not read by kind {self.kind}; leave it out")
        return self

    @property
    def copies(self) -> int:
        """How many numbers a checkpoint holds for each weight: itself, what the optimizer keeps, the average."""
        return 1 + (1 if self.kind == "sgd" else 2) + (self.ema > 0)

    @property
    def peak_lr(self) -> float:
        """The learning rate after scaling to the batch."""
        return self.scaled(self.lr)

    def scaled(self, lr: float) -> float:
        """A learning rate given for `lr_batch`, for `batch`."""
        return lr * self.batch / self.lr_batch if self.lr_batch else lr


class PretrainOptim(Optim):
    """The optimizer, what surrounds a step, and what classification adds."""

    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross-entropy of each class by itself, the mean over all of them (arXiv:2110.00476)."""

    bce_threshold: float = Field(0.0, ge=0, lt=1)
    """bce: a class with a larger share of the target is wholly there, the others are not. 0: the shares are targets."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes (arXiv:1512.00567). 0 is off."""

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.bce_threshold and self.loss != "bce":
            raise ValueError(f"bce_threshold is read by loss bce, not by {self.loss}; leave it out")
        return self


class _Schedule(Strict):
    """The learning rate as a function of the step, see `backbone.training.schedule`."""

    kind: str

    unit: Literal["epochs", "iterations"] = "epochs"
    """Unit of total, milestones, warmup and hold_at_most."""

    total: float = Field(90, gt=0)
    """How long to train, in `unit`."""

    warmup: float = Field(0.0, ge=0)
    """Linear warm-up from zero over so much of the schedule."""

    hold_lr: float = Field(0.0, ge=0)
    """Learning rate to hold until training error falls below `hold_until_error` (ResNet-110: 0.01). 0 is off."""

    hold_until_error: float = Field(80.0, gt=0, le=100)
    """Percent, over the last `run.log_every` steps."""

    hold_at_most: float = Field(0.0, ge=0)
    """So much of the schedule is held at most. The first milestone ends it in any case. 0: nothing else does."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.warmup >= self.total:
            raise ValueError(
                f"warmup {self.warmup:g} leaves nothing of total {self.total:g}; "
                f"--schedule.warmup {self.total / 10:g}, say, or a larger --schedule.total"
            )
        if not self.hold_lr and self.hold_until_error != 80:
            raise ValueError("hold_until_error is read with hold_lr only")
        if not self.hold_lr and self.hold_at_most:
            raise ValueError("hold_at_most is read with hold_lr only")
        if self.warmup and self.hold_lr:
            raise ValueError("warmup and hold_lr are two ways to begin; give one")
        return self


class _WithMilestones(_Schedule):
    milestones: tuple[float, ...] = Field(min_length=1)
    """When the rate changes, in order."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)) or self.milestones[-1] >= self.total:
            raise ValueError(f"milestones {list(self.milestones)} must rise and stay below total {self.total:g}")
        return self


class CosineSchedule(_Schedule):
    """Half a cosine."""

    kind: Literal["cosine"] = "cosine"
    """cosine: to zero at the end."""


class StepsSchedule(_WithMilestones):
    """A staircase."""

    kind: Literal["steps"] = "steps"
    """steps: times gamma at each milestone."""

    gamma: float = Field(0.1, gt=0, lt=1)
    """What the rate is multiplied by."""


class PlateauSchedule(_Schedule):
    """Lowered where training stands still."""

    kind: Literal["plateau"] = "plateau"
    """plateau: times gamma when validation error has not improved for `patience` evaluations (the paper's ImageNet
    schedule)."""

    gamma: float = Field(0.1, gt=0, lt=1)
    """What the rate is multiplied by."""

    patience: int = Field(5, ge=1)
    """Evaluations."""


class ConstantSchedule(_Schedule):
    """One rate."""

    kind: Literal["constant"] = "constant"
    """constant: what `optim.lr` says."""


class PiecesSchedule(_WithMilestones):
    """Rates one after the other."""

    kind: Literal["pieces"] = "pieces"
    """pieces: another of `rates` from each milestone on, which is what a population-based search finds."""

    rates: tuple[Annotated[float, Field(gt=0)], ...]
    """Learning rate from each milestone on, given as `optim.lr` is, which is the one before the first."""

    @model_validator(mode="after")
    def _one_a_milestone(self) -> Self:
        if len(self.rates) != len(self.milestones):
            raise ValueError(f"rates {list(self.rates)}: give one a milestone, {len(self.milestones)} in all")
        return self


Schedule = Annotated[CosineSchedule | StepsSchedule | PlateauSchedule | ConstantSchedule | PiecesSchedule, OneOf()]


class Run(Strict):
    """Where results go and how often."""

    storage: str = "runs"
    """Folder or URL (s3://, gs://, ...) of all runs, seen by every node. The run is `<storage>/<name>`."""

    log_every: int = Field(50, ge=1)
    """Steps between two log records."""

    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints, beside the one after each evaluation. 0: those alone."""

    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations; the last step is always evaluated."""

    keep: int = Field(2, ge=1)
    """Newest checkpoints kept, beside the best."""

    export: Literal["last", "best"] = "last"
    """Which weights become the artifact."""

    track: Literal["none", "mlflow", "wandb"] = "none"
    """Where the run's numbers go besides: MLflow (MLFLOW_TRACKING_URI, else mlflow.db in a local storage) or Weights &
    Biases, each an extra. A run that is resumed goes on in the tracked run it began."""


class PretrainRun(Run):
    """Where results go, how often, and what becomes of batch statistics."""

    precise_bn: int = Field(8192, ge=0)
    """Images over which batch statistics are computed exactly at the end, as the paper's released nets. 0: keep the
    moving averages."""


class TrainingRecipe(Strict, ABC):
    """What every training run has."""

    PLACES: ClassVar[tuple[str, ...]] = ()
    """Fields that say where something lies or how it is read, which its fingerprint stands for."""

    LATER: ClassVar[dict[str, Any]] = {"optim.kind": "sgd", "optim.betas": [0.9, 0.999]}
    """Fields that recipes once did not have -> what was done then, their default. With it they are no part of the
    identity, so that runs of earlier versions go on under their names."""

    name: str = Field("", pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$")
    """The run. The same recipe under the same name resumes; empty: derived from the net and the recipe."""

    seed: Seed = 0
    """Of first weights, order and augmentation. Another seed is another run."""

    published: str = ""
    """What the recipe's source reports, and where; `--dry-run` prints it as published elsewhere. No part of the run."""

    optim: Optim = Optim()
    schedule: Schedule = CosineSchedule()
    compute: Compute = Compute()
    scaling: Scaling = Scaling()
    run: Run = Run()

    @property
    def run_name(self) -> str:
        """`name`, or one derived from the recipe alone, so that submitting the recipe again finds its run."""
        return self.name or f"{self.title}-{recipe_hash(self)[:8]}"

    def with_precision(self, precision: str) -> Self:
        """The same run's recipe with auto settled: it keeps its name."""
        compute = self.compute.model_copy(update={"precision": precision})
        return self.model_copy(update={"compute": compute, "name": self.run_name})

    @property
    @abstractmethod
    def title(self) -> str:
        """What people call what is trained."""

    @property
    @abstractmethod
    def equal_shares(self) -> bool:
        """Whether all workers must hold equally many micro-batches: synchronised statistics are a collective."""

    def check_micro_batch(self, unit: int) -> None:
        """ValueError where micro-batches of this size are not possible."""

    @model_validator(mode="after")
    def _possible(self) -> "TrainingRecipe":
        self.check_micro_batch(self.optim.micro_batch or self.optim.batch)
        if self.compute.precision == "fp16" and not self.scaling.use_gpu:
            raise ValueError("compute.precision fp16 needs scaling.use_gpu; use bf16 or fp32 on CPU")
        if self.equal_shares and self.scaling.processes > 1 and not self.scaling.use_gpu:
            raise ValueError("norm sync over several workers needs scaling.use_gpu: torch has it for GPUs alone")
        return self


class Recipe(TrainingRecipe):
    """Pretrain a backbone. A YAML file gives the fields (--config FILE), the command line overrides them."""

    PLACES: ClassVar[tuple[str, ...]] = tuple(
        f"data.{field}" for field in ("train", "val", "cache", "keep_gb", "workers", "remote_cpus", "resident")
    )
    LATER: ClassVar[dict[str, Any]] = {
        **TrainingRecipe.LATER,
        "data.hold_out": 0,
        "data.eval_size": 0,
        **{f"data.progressive.{field}": value for field, value in Progressive().model_dump().items()},
        "data.augment.magnitude": 9.0,
        "data.augment.magnitude_std": 0.0,
        "data.augment.repeats": 1,
        "model.stochastic_depth": 0.0,
        "optim.loss": "cross_entropy",
        "optim.bce_threshold": 0.0,
    }

    model: NetOptions = NetOptions()
    data: Data = SyntheticData()
    optim: PretrainOptim = PretrainOptim()
    run: PretrainRun = PretrainRun()

    @model_validator(mode="after")
    def _can_load(self) -> "Recipe":
        if isinstance(self.data, StoredData) and not self.data.train:
            raise ValueError(f"data.train is empty: source {self.data.source} needs the location of its images")
        if self.data.decode == "nvjpeg" and not self.scaling.use_gpu:
            raise ValueError("data.decode nvjpeg decodes on GPUs: set scaling.use_gpu, or data.decode exact or scaled")
        if self.data.remote_cpus and not self.scaling.num_workers:
            raise ValueError(
                f"data.remote_cpus {self.data.remote_cpus}: scaling.num_workers 0 trains without Ray; set it to 1 or "
                "more, or data.remote_cpus to 0"
            )
        self.data.check_compiled(self.compute.compile)
        return self

    @property
    def title(self) -> str:
        """See `TrainingRecipe.title`."""
        return self.model.name

    @property
    def equal_shares(self) -> bool:
        """See `TrainingRecipe.equal_shares`."""
        return self.model.norm == "sync"

    def check_micro_batch(self, unit: int) -> None:
        """See `TrainingRecipe.check_micro_batch`."""
        group = self.model.bn_group
        sharing = self.scaling.processes if self.model.norm == "sync" else 1
        self.model.check_maps(*self.data.smallest, images=sharing * (group or unit))
        if group and unit % group:
            raise ValueError(f"model.bn_group {group} does not divide optim.micro_batch {unit}")
        if isinstance(self.data.augment, ModernAugment) and self.data.augment.blends and unit % 2:
            raise ValueError(f"mixup and cutmix mix pairs: optim.micro_batch {unit} must be even")


def identity(recipe: TrainingRecipe) -> dict[str, Any]:
    """The part of a recipe that decides what is learned, as flat `section.field: value`.

    Left out: where it runs (`scaling`), where results go (`run`, but for what changes the weights), what others
    `published`, `PLACES`, and what `LATER` says.
    """
    sections = recipe.model_dump(mode="json", exclude={"name", "published", "scaling", "run"})
    run = recipe.run.model_dump(mode="json")
    # What a kind of training adds to `Run` changes its weights.
    sections["run"] = {field: value for field, value in run.items() if field not in Run.model_fields}
    sections["run"]["export"] = run["export"]
    if recipe.optim.ema:  # runs of earlier versions, whose averages began at full decay, are others
        sections["optim"]["ema"] = f"{recipe.optim.ema}, ramped up"
    if recipe.schedule.hold_lr or isinstance(recipe.schedule, PlateauSchedule):  # these read the run's own measurements
        sections["run"] |= {field: run[field] for field in ("log_every", "eval_every", "checkpoint_every")}
    elif recipe.run.export == "best":  # of the weights that were evaluated
        sections["run"]["eval_every"] = run["eval_every"]
    said = flat(sections).items()
    return {f: v for f, v in said if f not in recipe.PLACES and (f not in recipe.LATER or v != recipe.LATER[f])}


def recipe_hash(recipe: TrainingRecipe) -> str:
    """SHA-256 of `identity`, hexadecimal."""
    return hashlib.sha256(json.dumps(identity(recipe), sort_keys=True).encode()).hexdigest()


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections of fields as one dict, `section.field: value`."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows
