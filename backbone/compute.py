"""What a job computes with: its share of the cluster, and the form of its arithmetic. Imports nothing slow."""

import os
from typing import Literal

from pydantic import Field, model_validator

from backbone.options import Strict


class Compute(Strict):
    """How the same mathematics is carried out."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast. auto: bf16 where the workers' hardware computes it (CUDA 8.0 and later; CPUs with AVX512-BF16 or AMX),
    else fp32; found out at a run's first start and kept from then on. bf16 by name runs anywhere, emulated where there
    is no hardware, which is slow. fp16 scales the loss and skips steps that overflow."""

    channels_last: bool = True
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile, by its modes: slower to start, faster after. reduce-overhead: with CUDA graphs, where the host
    would hold up small nets."""


class Scaling(Strict):
    """The share of a cluster this run takes. Never changes what is learned, so a run may be resumed with another."""

    num_workers: int = Field(1, ge=0)
    """Training processes, one GPU each with use_gpu. 0: train in this process, without Ray."""

    min_workers: int = Field(0, ge=0)
    """Elastic: go on with any number from here to num_workers when nodes come and go. 0: always num_workers."""

    use_gpu: bool = False

    cpus_per_worker: int = Field(1, ge=1)
    """Cores reserved for a worker, and the threads torch computes with in it."""

    max_failures: int = Field(3, ge=0)
    """Restarts from the newest checkpoint after a worker or node died, before the job gives up."""

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
