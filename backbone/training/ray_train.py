"""Runs one function on every worker and brings back what the first returns.

Ray places, connects and restarts the workers. Checkpoints are the run's own (`backbone.training.state`): the loop reads
and writes them with Ray or without, a damaged one can be passed over, and one exists as soon as it is on disk. Ray
counts a checkpoint only once its controller has polled, and cannot go on when one it listed is gone.
"""

import gc
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from backbone.cluster import bundle, check_resources, connect, gpus_left_out
from backbone.compute import Scaling
from backbone.errors import Lost, UserError, last_line
from backbone.lease import Lease
from backbone.parallel import in_thread
from backbone.stopping import Stopped, asked, deferred, stop_of, until
from backbone.storage import filesystem, for_ray, join
from backbone.training.display import Display
from backbone.training.lone import KILLED, LEFT, failed_record, run_alone
from backbone.training.notice import Leaving
from backbone.training.post import Post, listen
from backbone.training.ray_parts import begin_sooner, is_preempted, trainer_class
from backbone.training.world import TIMEOUT_S, Payload, Report, World, is_first_process, local_world

P = TypeVar("P", bound=Payload)
SAME_FAILURE_S = 3.0
"""Errors of workers that come sooner after others are those others; to start workers anew takes longer."""

LAST_WORD_S = 60
"""Until the last word is said again, which may have been lost on its way."""

Worker = Callable[[P, World, Report], dict[str, Any]]


def launch(
    worker: Worker[P],
    payload: P,
    scaling: Scaling,
    label: str = "",
    watch: Report = lambda record: None,
    held: Lease | None = None,
) -> dict[str, Any]:
    """Run `worker(payload, world, report)` on every worker the recipe asks for and return the first one's result.

    Several may be called at once, from threads; `label` then says in the output whose line it is. `watch` is given each
    record of the run after it was shown. `held` is looked at with each record, and so before anything is written.

    `worker` is a function of an installed package; `payload.url` the run's folder, opened. With `num_workers: 0`
    it runs in this process, or in those torchrun started, without Ray.

    Raises:
        UserError: the cluster lacks what is asked for, a node does not see the storage, or a worker found a mistake of
            the user's.
        Lost: workers were killed or lost more often than `max_failures`.
        ray.train.TrainingFailedError: they failed so often in some other way. Of a lone worker its last error.
    """
    display = Display(payload.url, label, watch, keeps=is_first_process(scaling))
    try:
        with _stop_told(display, scaling, held):
            if scaling.num_workers:
                return _launch_on_ray(worker, payload, scaling, display, held)
            with (
                deferred(scaling.grace if scaling.notice_every else 0) as notice,
                local_world(scaling.use_gpu, scaling.cpus_per_worker, notice) as world,
            ):
                report = _while_held(held, display.show) if world.is_first else lambda record: None
                try:
                    result = worker(payload, world, report)
                    world.gather(None)  # what is read of the run afterwards, the first has written by now
                    return result
                except Leaving as error:  # that another rank was told to, alone
                    raise asked() or Stopped(signal.SIGTERM) from error
    except Stopped:
        raise
    except BaseException:
        with suppress(OSError):  # a full disk, or a folder that is gone, must not take the error's place
            display.note(traceback.format_exc())
        raise
    finally:
        display.close()


@contextmanager
def _stop_told(display: Display, scaling: Scaling, held: Lease | None) -> Generator[None]:
    """Where somebody stops the run, say so at once, before what takes seconds to end."""
    try:
        yield
    except BaseException as error:
        stop = stop_of(error)
        if not stop:
            raise
        if is_first_process(scaling):
            display.stopped("" if stop.final else _again(held))
        Stopped.told = True
        raise stop from None


def _again(held: Lease | None) -> str:
    """What the run does that is submitted again."""
    return "go on" if held else "start over"


def _grace(scaling: Scaling) -> float:
    """Seconds that workers get to save when the job is stopped; a second less than Ray gives a submitted job."""
    if not scaling.notice_every:
        return 0
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return scaling.grace
    return max(0.0, min(scaling.grace, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")) - 1))


def _while_held(held: Lease | None, report: Report) -> Report:
    """`report`, which first makes sure that the run is still this process's: a record goes before all that is saved."""

    def checked(record: dict[str, Any]) -> None:
        if held:
            held.check()
        report(record)

    return checked


def _launch_on_ray(
    worker: Worker[P], payload: P, scaling: Scaling, display: Display, held: Lease | None
) -> dict[str, Any]:
    ray, started = connect(display.say)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    post, listener = None, None
    try:
        with _stop_told(display, scaling, held):
            check_resources(scaling)
            if unused := gpus_left_out(scaling):
                display.say(unused)
            # On the driver's node, as Ray's own controller: on another, the display would be lost with that node.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            post = Post.begin(num_cpus=0, scheduling_strategy=here)
            in_vain: list[str | BrokenPipeError] = []
            listener = threading.Thread(target=listen, args=(post, display, scaling, in_vain), daemon=True)
            listener.start()
            told = {"worker": worker, "payload": payload, "post": post, "cwd": str(Path.cwd()), "held": held}
            told["scaling"] = scaling

            def wait_for(done: Callable[[float], bool]) -> None:
                asked: list[str] = []

                def ask() -> float:
                    display.stopped(_again(held))
                    asked.append("stopped")
                    post.ask("stopped")
                    return _grace(scaling) if display.has_begun else 0

                def is_done(seconds: float) -> bool:
                    if in_vain:
                        raise Lost(in_vain[0]) if isinstance(in_vain[0], str) else in_vain[0]
                    if asked:
                        post.ask(asked[0])
                    return done(seconds)

                until(is_done, ask)

            if scaling.num_workers == 1:
                result = run_alone(_on_lone_worker, told, scaling, post, wait_for)
            else:
                result = _fit_until_done(told, scaling, wait_for)
            while listener.is_alive():
                post.put(None)
                listener.join(LAST_WORD_S)
            return result
    finally:
        if post is not None:
            post.end()
        if listener is not None:
            listener.join(10)  # else it would ask for more after `ray.shutdown`, and that begins another cluster
        if started:
            ray.shutdown()


Wait = Callable[[Callable[[float], bool]], None]
"""`stopping.until`, which knows what to ask for."""


def _fit_until_done(told: dict[str, Any], scaling: Scaling, wait_for: Wait) -> dict[str, Any]:
    """`_fit`, again where nodes are taken away: Ray leaves those out, as soon as it knows that they will be."""
    while True:
        left = max(0, scaling.max_failures - told["post"].failures())
        result = _fit(told, scaling, left, wait_for)
        if LEFT not in result:
            return result
        # Ray itself would wait until the node is gone. A fresh attempt is placed on the nodes that stay, at once.


def _fit(told: dict[str, Any], scaling: Scaling, may_fail: int, wait_for: Wait) -> dict[str, Any]:
    """Several workers, by Ray Train, which may fail so often."""
    from ray.exceptions import ActorDiedError, RayError, RayTaskError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    post: Post = told["post"]

    def tell(died: Exception) -> None:
        """Of a worker that never came to run `_on_worker`."""
        post.put(failed_record(_died_early(died), not is_preempted(died)))

    url, elastic = told["payload"].url, 0 < scaling.min_workers < scaling.num_workers
    begin_sooner()
    trainer = trainer_class(tell)(
        _on_worker,
        train_loop_config=told,
        scaling_config=ScalingConfig(
            num_workers=(scaling.min_workers, scaling.num_workers) if elastic else scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=bundle(scaling),
            placement_strategy=scaling.placement,
        ),
        run_config=RunConfig(
            # Ray's own record of an attempt, which nothing reads again: each has a folder of its own.
            name=f"{url.rpartition('/')[2]}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            **for_ray(join(url, "ray")),
            # Workers that die with a node which was being taken away count apart: as often as that comes to pass.
            failure_config=FailureConfig(max_failures=may_fail, max_preemption_failures=-1),
            callbacks=[_failure_callback(post)],
        ),
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo", timeout_s=TIMEOUT_S),
    )
    # In a thread: Ray's own answer to Ctrl-C, which it gives in the main one, is a traceback.
    fit = in_thread(trainer.fit)
    wait_for(lambda seconds: bool(wait([fit], timeout=seconds).done))
    try:
        return fit.result().return_value
    except TrainingFailedError as error:
        cause = getattr(error, "controller_failure", None)
        if isinstance(cause, UserError | FloatingPointError):
            raise cause from None
        failures = getattr(error, "worker_failures", {})
        died_early = isinstance(cause, RayError | WorkerGroupStartupFailedError) and not isinstance(cause, RayTaskError)
        if not _dead(failures) and not died_early:
            raise
        who = _first_failure(failures) if failures else _died_early(cause)
        raise Lost(
            f"{who}, for want of memory perhaps, more often than scaling.max_failures {scaling.max_failures}"
        ) from error
    except ActorDiedError as error:
        raise Lost(f"Ray's process that leads the workers is gone ({last_line(error)})") from error


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on every worker, under Ray Train."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, size, device = context.get_world_rank(), context.get_world_size(), get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # workers of a node see all its GPUs; Ray chooses one but does not set it

    def evaluated(record: dict[str, Any]) -> None:
        """All ranks are here; oftener would wait for Ray's controller each time."""
        metrics = {k: v for k, v in record.items() if k not in ("kind", "total")}
        ray.train.report({**metrics, "checkpoint_path": join(config["payload"].url, "checkpoints")})

    with _listening(config["post"], rank == 0) as latest:

        def notice() -> str:
            info = ray.train.get_preemption_info()
            if info is None:
                return latest[-1]
            addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
            gone = ", ".join(addresses.get(node, node) for node in info.preempted_node_ids)
            return f"node {gone} will be taken away"

        return _work(config, World(rank, size, device, notice), evaluated)


def _on_lone_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on the only worker."""
    scaling: Scaling = config["scaling"]
    try:
        with (
            _listening(config["post"], True) as latest,
            local_world(scaling.use_gpu, scaling.cpus_per_worker, lambda: latest[-1]) as world,
        ):
            return _work(config, world, lambda record: None)
    finally:  # the next run may have this process: compiled graphs count against its own, and cycles hold memory
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()


def _listening(post: Post, is_first: bool) -> AbstractContextManager[list[str]]:
    """`Post.listened` on the first rank, which speaks for all."""
    return post.listened() if is_first else nullcontext([""])


def _work(config: dict[str, Any], world: World, evaluated: Report) -> dict[str, Any]:
    """What each worker does; `evaluated` is given evaluations on every rank."""
    import ray

    if Path(config["cwd"]).is_dir():  # Ray works in folders of its own; relative paths are the driver's
        os.chdir(config["cwd"])
    post, payload = config["post"], config["payload"]
    fs, path = filesystem(payload.url)
    if not fs.exists(join(path, "run.json")):  # the driver wrote it
        raise UserError(
            f"{payload.url}/run.json is not seen by node {ray.util.get_node_ip_address()}: run.storage must be a "
            "shared folder or a URL that every node sees"
        )
    nodes = world.gather(ray.util.get_node_ip_address())

    def report(record: dict[str, Any]) -> None:
        if world.is_first:
            post.put(record)
        if record["kind"] == "evaluation":
            evaluated(record)

    if world.is_first:
        where = ", ".join(f"{nodes.count(node)} on {node}" for node in sorted(set(nodes)))
        report({"kind": "say", "text": f"{world.size} worker(s) on {world.device.type}: {where}"})
    try:
        return config["worker"](payload, world, _while_held(config["held"], report) if world.is_first else report)
    except Leaving as error:  # an exception would count as a failure
        if world.is_first:
            report({"kind": "say", "text": f"{error}; going on elsewhere", "restarts": True})
        return {LEFT: str(error)}


def _failure_callback(post: Post) -> Any:
    from ray.train import UserCallback

    class OnFailure(UserCallback):
        """Ends the run at once at what a restart would only repeat: Ray takes an exception in a callback as final."""

        last = -math.inf

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, UserError | FloatingPointError):
                    raise error
            # Ray comes with the same errors again at each poll while it waits for a node to go.
            if time.monotonic() - self.last > SAME_FAILURE_S:
                how, counts = _first_failure(worker_exceptions), not _preempted(worker_exceptions)
                post.put(failed_record(how, counts))
            self.last = time.monotonic()

    return OnFailure()


def _died_early(died: Exception) -> str:
    from ray.exceptions import RayTaskError

    how = KILLED
    if is_preempted(died):
        how = "was on a node that was taken away"
    elif isinstance(died, RayTaskError):
        how = f"failed ({last_line(died)})"
    return f"a worker {how}, before it trained"


def _preempted(failures: dict[int, Exception]) -> bool:
    """Whether a worker died with a node that was being taken away; the others' errors then come of that."""
    return any(is_preempted(getattr(error, "health_check_failure", error)) for error in failures.values())


def _dead(failures: dict[int, Exception]) -> list[int]:
    """Ranks whose process is gone. The others' errors are of collectives that lost a partner."""
    from ray.exceptions import RayError

    return [rank for rank, error in failures.items() if isinstance(getattr(error, "health_check_failure", 0), RayError)]


def _first_failure(failures: dict[int, Exception]) -> str:
    """Which worker failed and of what, one line."""
    rank = next(iter([*_dead(failures), *failures]))
    error = failures[rank]
    if _dead(failures):
        return f"worker {rank}'s node was taken away" if _preempted(failures) else f"worker {rank} {KILLED}"
    return f"worker {rank} failed ({type(error).__name__}: {last_line(error)})"
