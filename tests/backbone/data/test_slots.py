"""A ring of shared memory between loader processes and training."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backbone.data.batches import Loader
from backbone.data.slots import AHEAD, KEPT, SHARED, InTurn, shared
from backbone.errors import UserError

CPU = torch.device("cpu")


@dataclass
class Numbered:
    """Batches whose every pixel says which they are."""

    def fill_in(self, ids: Sequence[int], images: Tensor) -> Any:
        for place, number in enumerate(ids):
            images[place] = number % 256
        return {"images": images, "labels": torch.tensor([*ids]), "bad": [str(ids[0])], "position": ids[0]}


def loader(workers: int, count: int = 61, batch: int = 3) -> Loader:
    ids = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    return Loader(Numbered(), ids, batch, (3, 4, 4), workers, CPU)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_last_two_batches_stay_as_they_are(workers: int):
    """Also when all that follow have long been made; every pass anew, the last batch being smaller."""
    batches = loader(workers)
    for _ in range(2):
        before, seen = None, []
        for batch in batches:
            for kept in (before, batch):
                if kept is not None:
                    own = kept["labels"].to(torch.uint8)[:, None, None, None]
                    assert (kept["images"] == own).all()
            assert batch["bad"] == [str(int(batch["labels"][0]))]
            before, seen = batch, seen + batch["labels"].tolist()
        assert seen == [*range(61)]
        assert before
        assert before["images"].shape == (1, 3, 4, 4)


def test_a_pass_broken_off_does_not_disturb_the_next():
    batches = loader(2)
    for number, _ in enumerate(batches):
        if number == 4:
            break
    for batch in batches:
        assert (batch["images"] == batch["labels"].to(torch.uint8)[:, None, None, None]).all()


def test_slots_are_given_in_turn():
    ids = [range(i, i + 1) for i in range(7)]
    assert [slot for slot, _ in InTurn(ids, 3)] == [0, 1, 2, 0, 1, 2, 0]
    assert [asked for _, asked in InTurn(ids, 3)] == ids


def test_memory_is_that_of_the_batches_under_way():
    found = next(iter(loader(2)))["images"]
    assert found.untyped_storage().nbytes() == (2 * AHEAD + KEPT) * 3 * 3 * 4 * 4


@pytest.mark.skipif(not Path(SHARED).is_dir(), reason="shared memory is not a file system here")
def test_too_little_shared_memory_is_refused_beforehand():
    """64 MiB is what a container has where nobody says otherwise; torch's loader dies there of a bus error."""
    stat = os.statvfs(SHARED)
    mebibytes = stat.f_blocks * stat.f_frsize // 2**20 + 1
    with pytest.raises(UserError, match=rf"data\.workers 4 need {mebibytes} MiB .* has \d+ free; set data\.workers or"):
        shared(torch.Size([mebibytes, 2**20]), 4)


@pytest.mark.skipif(not Path(SHARED).is_dir(), reason="shared memory is not a file system here")
def test_shared_memory_is_taken_before_it_is_filled():
    """So that of several processes of a machine, the one for which it does not suffice is told."""
    images = shared(torch.Size([8, 2**20]), 1)
    descriptor, size = images.untyped_storage()._share_fd_cpu_()
    assert images.is_shared()
    assert os.fstat(descriptor).st_blocks * 512 >= size == 8 * 2**20
