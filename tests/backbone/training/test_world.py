"""What ranks share: means of their statistics."""

import multiprocessing
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbone.training.world import World

RANKS = 3


def net(rank: int) -> nn.Sequential:
    """A trained norm that has seen `rank + 1` batches of this rank's own images, and one that is frozen."""
    module = nn.Sequential(nn.BatchNorm2d(4), FrozenBatchNorm2d(4))
    module.get_submodule("1").get_buffer("running_var").fill_(0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(rank + 1):
        module(torch.randn(2, 4, 3, 3, generator=generator) * (1 + 5 * rank) + 7 * rank)
    return module


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    world, module = World(rank, RANKS, torch.device("cpu")), net(rank)
    world.share_buffers(module)
    once = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    world.share_buffers(module)
    world.share_buffers(nn.Linear(2, 2))  # no buffers: nothing to do
    torch.save({"once": once, "twice": dict(module.state_dict())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_statistics_are_the_mean_over_ranks(tmp_path: Path) -> None:
    """Against numpy's; what is frozen stays to the bit, counters are the first rank's, and once is enough."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.backbone.training.test_world"])
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path))) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    own = [net(rank).state_dict() for rank in range(RANKS)]
    for name in ("0.running_mean", "0.running_var"):
        expected = np.mean([state[name].double().numpy() for state in own], axis=0).astype(np.float32)
        assert np.abs(expected - own[0][name].numpy()).max() > 0.5
        for states in found:
            np.testing.assert_array_equal(states["once"][name].numpy(), expected)
    for states in found:
        assert states["once"]["0.num_batches_tracked"].item() == 1
        assert all(torch.equal(states["once"][name], own[0][name]) for name in own[0] if name.startswith("1."))
        assert all(torch.equal(tensor, states["twice"][name]) for name, tensor in states["once"].items())


def test_alone_nothing_changes() -> None:
    module = net(1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    World(0, 1, torch.device("cpu")).share_buffers(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
