"""The one place that decides how batches are made: in loader processes, on other nodes' CPUs, by the GPU's decoder, or
from images that stay on the device. What is in a batch does not depend on it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from backbone.data.batches import CPU, Batch, Loader, TrainSet, ValSet, evaluation_batches
from backbone.data.resident import Resident
from backbone.data.slots import to_device
from backbone.data.stream import MicroBatches


def train_loader(
    train_set: TrainSet, batches: MicroBatches, device: torch.device = CPU, resident: Resident | None = None
) -> Iterable[Batch]:
    """All micro-batches of one rank to the end of the run, on the device, to be iterated once.

    A batch stays as it is until the next but one is asked for. `resident`: the images of `train_set`, where they are
    kept on the device.

    Raises:
        UserError: decode nvjpeg, and torch has no GPU or no nvJPEG; or too little shared memory.
    """
    options = train_set.options
    if resident is not None:
        return resident.batches(batches)
    if options.remote_cpus:
        from backbone.data.remote import remote_batches  # imports Ray

        return to_device(remote_batches(train_set, batches, to_gpu=device.type == "cuda"), device)
    here = CPU if options.decode == "nvjpeg" else device
    each = (3, options.size, options.size)
    loader = Loader(train_set, batches, batches.micro_batch, each, options.workers, here)
    if options.decode != "nvjpeg":
        return loader
    from backbone.data.nvjpeg import Decoder  # torchvision takes seconds to import

    decoder = Decoder(train_set)
    return (decoder(batch) for batch in loader)


def val_loader(val_set: ValSet, ids: Sequence[int], batch: int, device: torch.device = CPU) -> Iterable[Any]:
    """The evaluation views of `ids` in order, on the device; may be iterated again and again.

    With data.resident they are made once and stay there.
    """
    loader = evaluation_batches(val_set, ids, batch, device)
    if not val_set.options.resident:
        return loader
    return [{**one, "images": one["images"].clone()} for one in loader]  # what a loader gives does not last
