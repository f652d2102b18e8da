"""The only module that knows Ray Data: training batches made by CPUs anywhere in the cluster, the same to the bit.

Ray Data takes numbers of portions out and brings finished micro-batches back; what is in one is the business of
`TrainSet`, so order and pixels are those of loader processes. Its iterators cannot resume: a resume asks for later
micro-batches. Nor is its own back-pressure used: holding finished blocks back, it polls without a pause and takes much
of a core from the training process. Here numbers are given out no faster than portions are taken.
"""

import asyncio
import logging
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from backbone.data.index import IndexedSource
from backbone.data.slots import KEPT
from backbone.data.sources import Source, open_source
from backbone.data.stream import MicroBatches
from backbone.errors import UserError
from backbone.storage import is_local

if TYPE_CHECKING:
    from backbone.data.batches import Batch, TrainSet

PORTION = 256  # images of a task, at least: each task costs the training process some milliseconds under its GIL
AHEAD = 2  # portions given to each CPU at a time: one under way, one to go on with; and one more may lie ready
NODE = "ray.io/node-id"  # a label Ray gives every node


def remote_batches(train_set: "TrainSet", batches: MicroBatches, pinned: bool = False) -> Iterator["Batch"]:
    """The batches of `train_loader`, in its order, from `data.remote_cpus` processes of one CPU each.

    They run on nodes without a GPU where the cluster has any, else on any; lost ones are replaced by Ray. A batch stays
    as it is until the next but one is asked for. `pinned`: its images lie in page-locked memory.

    Raises:
        UserError: Ray does not run, the CPUs are not there, or another node sees no or other files.
        BadImage: as `train_loader`, when its batch is asked for.
    """
    cpus, size = train_set.options.remote_cpus, train_set.options.size
    elsewhere = _check_room(cpus, batches.world)
    slots = torch.empty((KEPT, batches.micro_batch, 3, size, size), dtype=torch.uint8, pin_memory=pinned)
    maker = Maker(_pack(train_set), batches)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    gate: Any = ray.remote(Gate).options(num_cpus=0, scheduling_strategy=here).remote((AHEAD + 1) * cpus + 1)
    given = 0
    try:
        for portion in _portions(maker, gate, cpus, elsewhere):
            gate.taken.remote()
            images = np.frombuffer(portion["images"][0].as_buffer(), np.uint8)
            for place, batch in enumerate(pickle.loads(portion["rest"][0].as_py())):
                if isinstance(batch, UserError):
                    raise batch
                slot = slots[given % KEPT]
                given += 1
                flat = slot.numpy().reshape(-1)
                np.copyto(flat, images[place * flat.size : (place + 1) * flat.size])
                batch["images"] = slot
                yield batch
    finally:
        ray.kill(gate)  # whoever waits for it ends


def _portions(maker: "Maker", gate: Any, cpus: int, elsewhere: dict[str, str]) -> Iterator[pa.Table]:
    """What `maker` makes of 0, 1, ..., in this order."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # a line for every data set that begins and ends
    count = len(maker)
    data = ray.data.read_datasource(Numbers(gate, count), override_num_blocks=1, concurrency=1, num_cpus=0).map_batches(
        Made,
        fn_constructor_args=(maker,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
        compute=ActorPoolStrategy(size=min(cpus, count), max_tasks_in_flight_per_actor=AHEAD),
    )
    context = data.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # a block for each row: it travels as soon as it is there
    context.execution_options.preserve_order = True
    context.execution_options.label_selector = elsewhere or None
    yield from iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=AHEAD))


class Gate:
    """Lets numbers through up to so many more than portions were taken. An actor."""

    def __init__(self, ahead: int) -> None:
        self.limit = ahead
        self.moved = asyncio.Condition()

    async def taken(self) -> None:
        """One more portion was."""
        async with self.moved:
            self.limit += 1
            self.moved.notify_all()

    async def passes(self, number: int) -> None:
        """Returns when it may be given out."""
        async with self.moved:
            await self.moved.wait_for(lambda: number < self.limit)


class Numbers(Datasource):
    """0 to `count` in rows of their own, each as the gate lets it through."""

    def __init__(self, gate: Any, count: int) -> None:
        super().__init__()
        self.gate, self.count = gate, count

    def estimate_inmemory_data_size(self) -> int:
        """Bytes."""
        return 8 * self.count

    def get_read_tasks(self, parallelism: int, *_args: Any, **_more: Any) -> list[ReadTask]:
        """One, which runs as long as the training."""
        about = BlockMetadata(num_rows=self.count, size_bytes=8 * self.count, input_files=None, exec_stats=None)
        return [ReadTask(partial(_numbers, self.gate, self.count), about)]


def _numbers(gate: Any, count: int) -> Iterator[pa.Table]:
    for number in range(count):
        try:
            ray.get(gate.passes.remote(number))
        except RayError:  # training took no more
            return
        yield pa.table({"number": [number]})


class Maker:
    """Number -> the micro-batches of a portion of at least PORTION images. Pickles small, for any node."""

    def __init__(self, made: bytes, batches: MicroBatches) -> None:
        self.made, self.micro_batch = made, batches.micro_batch
        self.firsts = np.array([positions[0] for positions in batches], np.int64)
        self.unit = -(-PORTION // self.micro_batch)
        self.train_set: TrainSet | None = None

    def __len__(self) -> int:
        return -(-len(self.firsts) // self.unit)

    def make(self, number: int) -> tuple[np.ndarray, list[Any]]:
        """Images uint8 [micro-batches, micro_batch, 3, S, S], and each batch's other entries.

        A mistake of the user's takes the place of a batch, the last then: raised here, it would come out of order.
        """
        firsts = self.firsts[number * self.unit : (number + 1) * self.unit].tolist()
        images = np.empty(0, np.uint8)
        batches: list[Any] = []
        try:
            if self.train_set is None:
                self.train_set = _unpack(self.made)
            size = self.train_set.options.size
            images = np.empty((len(firsts), self.micro_batch, 3, size, size), np.uint8)
            for first, memory in zip(firsts, torch.from_numpy(images), strict=True):
                batch = self.train_set.fill_in(range(first, first + self.micro_batch), memory)
                batches.append({name: value for name, value in batch.items() if name != "images"})
        except UserError as error:
            batches.append(type(error)(str(error)))
        return images, batches


class Made:
    """What runs on the CPUs: a table of a number -> a table of its portion, in one row."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __call__(self, numbers: pa.Table) -> pa.Table:
        """Columns `images`: bytes, not copied again on the way; `rest`: pickled."""
        images, rest = self.maker.make(numbers["number"][0].as_py())
        buffers = [None, pa.py_buffer(np.array([0, images.nbytes])), pa.py_buffer(images)]
        column = pa.Array.from_buffers(pa.large_binary(), 1, buffers)
        return pa.table({"images": column, "rest": pa.array([pickle.dumps(rest)], pa.binary())})


def _pack(train_set: "TrainSet") -> bytes:
    """A TrainSet for another node, pickled. An index lies in a cache of one machine: others open the data anew."""
    source, options = train_set.source, train_set.options
    if isinstance(source, IndexedSource):
        where = {name: value for name in ("train", "cache") if (value := getattr(options, name)) and is_local(value)}
        absolute = {
            name: str(Path(value).expanduser().absolute()) for name, value in where.items()
        }  # relative to this process
        options = options.model_copy(update=absolute)
        source = source.fingerprint
    return pickle.dumps((source, options, train_set.seed, train_set.fill))


def _unpack(made: bytes) -> "TrainSet":
    from backbone.data.batches import TrainSet, one_thread

    one_thread()
    source, options, seed, fill = pickle.loads(made)
    if isinstance(source, str):
        source = _opened(options, source, ray.util.get_node_ip_address())
    return TrainSet(source, options, seed, fill)


def _opened(options: Any, fingerprint: str, node: str) -> Source:
    try:
        source = open_source(options.source, options.train, options.cache or None)
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
