"""Training batches made by CPUs anywhere in the cluster, the same to the bit as those of loader processes.

An actor on each CPU makes portions of micro-batches, in turn; what is in one is the business of `TrainSet`. Each is
asked for a few portions ahead and no more, so that what waits in memory is bounded, and a resume just asks for later
ones. Ray restarts an actor that is lost, elsewhere if need be, and has it make again what it had not handed over.
"""

import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError

from backbone.data import pinned
from backbone.data.batches import Batch, TrainSet, one_thread
from backbone.data.holdout import hold_out
from backbone.data.index import IndexedSource
from backbone.data.options import StoredData
from backbone.data.slots import KEPT, within
from backbone.data.sources import Source, open_source
from backbone.data.stream import MicroBatches
from backbone.errors import UserError
from backbone.storage import is_local

PORTION = 256  # images of a task, at least: each task costs the training process some milliseconds under its GIL
AHEAD = 3  # portions each CPU is asked for at a time: one under way, one to go on with, one ready
PATIENCE = 600  # seconds without a portion after which those who make them are taken for lost
NODE = "ray.io/node-id"  # a label Ray gives every node


def remote_batches(train_set: TrainSet, batches: MicroBatches, to_gpu: bool = False) -> Iterator[Batch]:
    """The batches of `train_loader`, in its order, from `data.remote_cpus` processes of one CPU each.

    They run on nodes without a GPU where the cluster has any, else on any. A batch stays as it is until the next but
    one is asked for. `to_gpu`: its images lie in page-locked memory.

    Raises:
        UserError: Ray does not run, the CPUs are not there, or another node sees no or other files.
        BadImage: as `train_loader`, when its batch is asked for.
        TimeoutError: no portion came for long: the nodes that make them are lost.
    """
    cpus, size = train_set.options.remote_cpus, train_set.options.size
    elsewhere = _check_room(cpus, batches.world)
    slots = pinned.empty((KEPT, batches.micro_batch, 3, size, size), torch.uint8, to_gpu)
    # DEFAULT: outside the training workers' placement group, whose CPUs are theirs.
    kind: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1, scheduling_strategy="DEFAULT")(Maker)
    packed = ray.put(_pack(train_set))
    makers = [kind.options(label_selector=elsewhere or None).remote(packed, batches.micro_batch) for _ in range(cpus)]
    given = 0
    try:
        for images, portion in _in_order(makers, batches):
            for place, batch in enumerate(portion):
                if isinstance(batch, UserError):
                    raise batch
                side = train_set.side(batch["position"])
                slot = within(slots[given % KEPT], (*slots.shape[1:3], side, side))
                given += 1
                np.copyto(slot.numpy(), images[place].ravel()[: slot.numel()].reshape(slot.shape))
                batch["images"] = slot
                yield batch
    finally:
        for maker in makers:
            ray.kill(maker)


def _in_order(makers: Sequence[Any], batches: MicroBatches) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """What the makers make of one portion after the other, each asked for up to AHEAD of them before it is needed."""
    positions = iter(batches)
    several = -(-PORTION // batches.micro_batch)
    numbers = count()
    asked: deque[Any] = deque()

    def ask() -> None:
        portion = list(islice(positions, several))
        if portion:
            maker = makers[next(numbers) % len(makers)]
            asked.append(maker.make.options(num_returns=2).remote(portion))

    for _ in range(AHEAD * len(makers)):
        ask()
    while asked:
        try:
            images, rest = ray.get(asked.popleft(), timeout=PATIENCE)
        except GetTimeoutError:
            raise TimeoutError(
                f"no batch for {PATIENCE} s from {len(makers)} CPU(s) of other nodes (data.remote_cpus): they are lost"
            ) from None
        ask()
        yield images, rest


class Maker:
    """Micro-batches of positions -> their batches. An actor."""

    def __init__(self, packed: bytes, micro_batch: int) -> None:
        self.packed, self.micro_batch = packed, micro_batch
        self.train_set: TrainSet | None = None

    def make(self, portion: list[range]) -> tuple[np.ndarray, list[Any]]:
        """Images uint8 [micro-batches, micro_batch, 3, S, S], and each batch's other entries.

        A mistake of the user's takes the place of a batch, the last then: raised here, it would come out of order.
        """
        images = np.empty(0, np.uint8)
        batches: list[Any] = []
        try:
            if self.train_set is None:
                self.train_set = _unpack(self.packed)
            size = self.train_set.options.size
            images = np.empty((len(portion), self.micro_batch, 3, size, size), np.uint8)
            for positions, memory in zip(portion, torch.from_numpy(images), strict=True):
                batch = self.train_set.fill_in(positions, memory)
                batches.append({name: value for name, value in batch.items() if name != "images"})
        except UserError as error:
            batches.append(type(error)(str(error)))
        return images, batches


def _pack(train_set: TrainSet) -> bytes:
    """A TrainSet for another node, pickled. An index lies in a cache of one machine: others open the data anew."""
    source, options = train_set.source, train_set.options
    if isinstance(source, IndexedSource):
        where = {name: value for name in ("train", "cache") if (value := getattr(options, name)) and is_local(value)}
        absolute = {
            name: str(Path(value).expanduser().absolute()) for name, value in where.items()
        }  # relative to this process
        options = options.model_copy(update=absolute)
        source = source.fingerprint
    return pickle.dumps((source, options, train_set.seed, train_set.fill, train_set.apart))


def _unpack(packed: bytes) -> TrainSet:
    one_thread()
    source, options, seed, fill, apart = pickle.loads(packed)
    if isinstance(source, str):
        source = _opened(options, source, ray.util.get_node_ip_address())
    return TrainSet(source, options, seed, fill, apart)


def _opened(options: StoredData, fingerprint: str, node: str) -> Source:
    try:
        source = open_source(options.source, options.train, options.cache or None, options.keep_gb)
        if options.hold_out:
            source, _ = hold_out(source, options.hold_out)
    except UserError as error:
        raise UserError(
            f"node {node}, which makes batches (data.remote_cpus): {error}; data.train must be a shared folder or a "
            "URL that all nodes see"
        ) from error
    if source.fingerprint != fingerprint:
        raise UserError(
            f"node {node}, which makes batches (data.remote_cpus), has other files under {options.train} than the node "
            "that trains; copy them anew, or use a shared folder or a URL"
        )
    return source


def _check_room(cpus: int, workers: int) -> dict[str, str]:
    """The nodes that may make batches, as Ray's label selector; none is: all.

    Raises:
        UserError: Ray does not run, or CPUs that no placement group (training workers') holds are too few for all
            `workers`: Ray would wait for ever.
    """
    if not ray.is_initialized():
        raise UserError(
            f"data.remote_cpus {cpus}: Ray does not run in this training process; set scaling.num_workers to 1 or "
            "more, or data.remote_cpus to 0"
        )
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    with_gpu = [name for name, has in nodes.items() if has.get("GPU")]
    if not any(has.get("CPU") for name, has in nodes.items() if name not in with_gpu):
        with_gpu = []
    free = {name: has.get("CPU", 0.0) for name, has in nodes.items() if name not in with_gpu}
    for group in ray.util.placement_group_table().values():
        for bundle, node in group["bundles_to_node_id"].items():
            if node in free and group["state"] == "CREATED":
                free[node] -= group["bundles"][bundle].get("CPU", 0)
    room = sum(int(one) for one in free.values())
    if room < cpus * workers:
        where = f"{len(free)} node(s) without a GPU" if with_gpu else f"{len(free)} node(s)"
        raise UserError(
            f"data.remote_cpus {cpus} for each of {workers} training worker(s) are {cpus * workers} CPUs; the cluster "
            f"has {room} on {where} beside those that training holds. Ask for less, or add nodes"
        )
    return {NODE: f"!in({','.join(with_gpu)})"} if with_gpu else {}
