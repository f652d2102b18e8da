"""What a run will take on a cluster: closed forms over a few measured rates. Imports nothing slow.

The model, for n workers, of which the slowest computes u of the step's micro-batches:

- compute: u x micro-batch / (images/s of one device), for another net than the measured one scaled by multiply-adds.
  Workers that share devices (CPU workers on fewer cores) take turns.
- update: bytes of the weights / rate of the optimizer, by every worker in full however small its share of the step.
- all-reduce: a ring, 2 (n - 1) / n x bytes / bandwidth + 2 (n - 1) x latency a bucket of 25 MiB (Patarasuk and Yuan
  2009; DDP's buckets). Gradients are float32.
- overlap: what is seen of the all-reduce is what the last micro-batch's backward, two thirds of its compute, does not
  hide; on CPU the same cores do both, so nothing is hidden.
- loading: u x micro-batch / (cores x images/s of a core). Behind the step where loaders have cores of their own, so the
  slower of the two counts; before it where the worker loads by itself (data.workers 0) or shares its cores.
- evaluation: forward alone, a third of the compute.

Left out: start, checkpoints, compilation, warm-up of the loaders, stragglers, nodes whose links differ, and what
workers that share cores lose to each other beyond taking turns.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from backbone.errors import UserError
from backbone.options import Strict

BUCKET = 25 * 2**20
"""Bytes, DDP's default."""


class Rates(Strict):
    """What was measured, on one device and one core of the cluster. `benchmarks/cost_model.py` writes it."""

    measured: str
    """What on what, for people."""

    multiply_adds: int = Field(ge=1)
    """Of the measured net for one image, forward."""

    images_per_second: float = Field(gt=0)
    """Of one device training that net: forward and backward, data at hand."""

    update_bytes_per_second: float = Field(gt=0)
    """Bytes of float32 weights that one device's optimizer brings up to date in a second."""

    loader_images_per_second: float = Field(gt=0)
    """Of one core that reads, decodes and augments."""

    bandwidth: float = Field(gt=0)
    """Bytes a second through the slowest link of the ring."""

    latency: float = Field(ge=0)
    """Seconds a message takes on top."""

    devices: int = Field(0, ge=0)
    """How many workers compute at full speed at once, which is for CPU workers of one machine its cores by their
    threads. 0: each worker has a device of its own."""

    overlaps: bool = True
    """The all-reduce and the loaders run beside the computation: on GPUs. False: on the same cores."""


@dataclass(frozen=True)
class Shape:
    """A run on a cluster, in numbers."""

    workers: int
    batch: int
    micro_batch: int
    multiply_adds: int  # of the net for one image, forward
    gradient_bytes: int
    train_images: int
    val_images: int
    steps: int
    evaluations: int
    loader_cores: int  # of each worker; 0: the worker loads by itself


@dataclass(frozen=True)
class Cost:
    """Predicted seconds, of a step and of what it is made of, and what follows."""

    compute: float
    update: float
    all_reduce: float
    exposed: float  # of the all-reduce
    loading: float
    step: float
    epoch: float  # training alone
    evaluation: float  # each
    total: float
    device_hours: float
    loader_cores: int  # of each worker, so that loading never waits

    @property
    def data_wait(self) -> float:
        """Share of a step that waits for data."""
        return 1 - (self.compute + self.update + self.exposed) / self.step


def ring_all_reduce(workers: int, num_bytes: float, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce in buckets: see the module."""
    if workers == 1:
        return 0.0
    buckets = math.ceil(num_bytes / BUCKET)
    return 2 * (workers - 1) * (num_bytes / workers / bandwidth + buckets * latency)


def predict(shape: Shape, rates: Rates) -> Cost:
    """The model of this module's first lines."""
    units = math.ceil(shape.batch // shape.micro_batch / shape.workers)
    mine = units * shape.micro_batch
    sharing = max(1.0, shape.workers / rates.devices) if rates.devices else 1.0
    image = sharing * shape.multiply_adds / rates.multiply_adds / rates.images_per_second
    compute = mine * image
    update = sharing * shape.gradient_bytes / rates.update_bytes_per_second
    all_reduce = ring_all_reduce(shape.workers, shape.gradient_bytes, rates.bandwidth, rates.latency)
    hidden = 2 / 3 * shape.micro_batch * image if rates.overlaps else 0.0
    exposed = max(0.0, all_reduce - hidden)
    busy = compute + exposed + update
    beside = rates.overlaps and shape.loader_cores > 0
    share = 1.0 if rates.overlaps else sharing
    loading = share * mine / (max(1, shape.loader_cores if beside else 1) * rates.loader_images_per_second)
    step = max(busy, loading) if beside else busy + loading
    forward, load = image / 3, loading / mine
    evaluation = math.ceil(shape.val_images / shape.workers) * (max(forward, load) if beside else forward + load)
    total = shape.steps * step + shape.evaluations * evaluation
    return Cost(
        compute=compute,
        update=update,
        all_reduce=all_reduce,
        exposed=exposed,
        loading=loading,
        step=step,
        epoch=shape.train_images / shape.batch * step,
        evaluation=evaluation,
        total=total,
        device_hours=total * shape.workers / 3600,
        loader_cores=math.ceil(mine / busy / rates.loader_images_per_second),
    )


def lines(cost: Cost, shape: Shape, rates: Rates) -> list[tuple[str, str]]:
    """The prediction for `--dry-run`, as (label, text)."""
    scaled = shape.multiply_adds / rates.multiply_adds
    of = "as measured" if scaled == 1 else f"scaled by {scaled:.3g} times the multiply-adds"
    return [
        ("rates", f"{rates.measured}; {of}"),
        (
            "step time",
            f"{_time(cost.step)}: compute {_time(cost.compute)}, update {_time(cost.update)}, all-reduce "
            f"{_time(cost.all_reduce)} of which {_time(cost.exposed)} shows, data wait {cost.data_wait:.0%}",
        ),
        (
            "time",
            f"{_time(cost.epoch)} an epoch, {_time(cost.evaluation)} an evaluation, {_time(cost.total)} in all: "
            f"{cost.device_hours:.3g} device-hours",
        ),
        ("loaders", f"{cost.loader_cores} core(s) a worker keep up; data.workers is {shape.loader_cores}"),
    ]


def read_rates(path: str) -> Rates:
    """Rates from a file, or from the result of the benchmark, which has them under `rates`.

    Raises:
        UserError: it is missing or holds something else.
    """
    try:
        tree = json.loads(Path(path).expanduser().read_text())
        return Rates.model_validate(tree.get("rates", tree))
    except OSError as error:
        raise UserError(f"--rates {path}: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise UserError(f"--rates {path}: {faults}; benchmarks/cost_model.py writes such a file") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"--rates {path}: not a JSON object: {error}") from error


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
