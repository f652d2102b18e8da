"""What a job computes with: its share of the cluster, and the form of its arithmetic. Imports nothing slow."""

import os
import subprocess
from functools import cache
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from backbone.options import Strict


def has_gpu() -> bool:
    """Whether this machine has a GPU of NVIDIA's that processes may use. torch would take seconds to say."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return _lists_gpu(os.environ.get("PATH", ""))


@cache
def _lists_gpu(path: str) -> bool:
    """Asked once, with this PATH: a recipe is validated many times."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except OSError:  # there is none
        return False
    except subprocess.TimeoutExpired as error:
        raise ValueError("auto: nvidia-smi does not answer within 30 s; give true or false") from error
    return listed.startswith("GPU ")


class Compute(Strict):
    """How the same mathematics is carried out."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast. auto: bf16 where the workers' hardware computes it (CUDA 8.0 and later; CPUs with AVX512-BF16 or AMX),
    else fp32; found out at a run's first start and kept from then on. bf16 by name runs anywhere, emulated where there
    is no hardware, which is slow. fp16 scales the loss and skips steps that overflow."""

    channels_last: bool = True
    """Keep a pixel's channels together in memory, as fast convolutions want it."""

    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile, by its modes: slower to start, faster after. reduce-overhead: with CUDA graphs, where the host
    would hold up small nets."""


class Scaling(Strict):
    """The share of a cluster this run takes. Never changes what is learned, so a run may be resumed with another;
    with norm sync its number of workers stays."""

    num_workers: int = Field(1, ge=0)
    """Training processes, one GPU each with use_gpu. 0: train in this process, without Ray."""

    min_workers: int = Field(0, ge=0)
    """Elastic: go on with any number from here to num_workers when nodes come and go. 0: always num_workers."""

    use_gpu: Annotated[bool, BeforeValidator(lambda given: has_gpu() if given == "auto" else given)] = False
    """A GPU for each worker. auto: if the machine that the job is started on has one."""

    cpus_per_worker: int = Field(1, ge=1)
    """Cores reserved for a worker, and the threads torch computes with in it."""

    max_failures: int = Field(3, ge=0)
    """Restarts from the newest checkpoint after a worker or node died, before the job gives up. Nodes that are taken
    away with notice (preemption) do not count."""

    notice_every: float = Field(2.0, ge=0)
    """Seconds between two looks, of all workers at the same step, for a notice that a node will be taken away or that
    the job was stopped: then the run saves its state and leaves. 0: never, and what was done since the last checkpoint
    is done again."""

    grace: float = Field(20.0, ge=0)
    """Seconds that a stopped job (Ctrl-C, SIGTERM) waits for that checkpoint. `ray job stop` kills after 3 s, for which
    it is shortened; RAY_JOB_STOP_WAIT_TIME_S on the cluster's head gives more."""

    wait_at_most: float = Field(24.0, gt=0)
    """Hours to wait for workers that the cluster has no room for, until the job gives up and can be submitted again."""

    placement: Literal["PACK", "SPREAD"] = "PACK"
    """PACK: fill a node first. SPREAD: one node each where possible."""

    autoscales: bool = False
    """The cluster adds nodes on demand: do not refuse what it lacks at the start."""

    @model_validator(mode="after")
    def _possible(self) -> "Scaling":
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is above num_workers {self.num_workers}")
        return self

    @property
    def processes(self) -> int:
        """How many share a batch: Ray's workers, or without Ray this process or those that torchrun started."""
        return self.num_workers or int(os.environ.get("WORLD_SIZE", "1"))
