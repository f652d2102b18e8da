"""One worker on the cluster, without Ray Train: that starts six processes beside it, 25 s of processor time, to connect
workers, and this one has nobody to be connected with.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backbone.cluster import bundle
from backbone.compute import Scaling
from backbone.errors import Lost, UserError, last_line
from backbone.stopping import check

KILLED = "worker 0 was killed or its node was lost"


def run_alone(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    told: dict[str, Any],
    scaling: Scaling,
    environment: dict[str, str],
    failed: Callable[[str], None],
) -> dict[str, Any]:
    """`function(told)` in a process of the cluster; where that is lost or fails, again, `max_failures` times.

    `failed` is told of each failure that is not the last, in words.

    Raises:
        UserError: a mistake of the user's, found there.
        FloatingPointError: the training diverged.
        Lost: the process was killed or lost more often than `max_failures`.
        Stopped: somebody stopped it; the process is ended.
        Exception: what `function` raised each time.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # A group, as Ray Train's workers have: by it others see what training holds, and what it waits for.
    group = placement_group([bundle(scaling)])
    # On a GPU the process ends with its task, and gives all its memory back. On CPUs the next run takes it over: to
    # start another and to import what training needs takes seconds, which small runs have many of.
    task = ray.remote(max_calls=1 if scaling.use_gpu else 0)(function).options(
        num_cpus=scaling.cpus_per_worker,
        num_gpus=int(scaling.use_gpu),
        max_retries=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        runtime_env={"env_vars": environment},
        name="LoneWorker",
    )
    running = None
    try:
        for left in reversed(range(scaling.max_failures + 1)):
            running = task.remote(told)
            try:
                while not ray.wait([running], timeout=0.5)[0]:
                    check()
                # Ray shows a result before it has closed its books on the task; one that is cancelled in between makes
                # Ray abort this process ("Tried to complete task that was not pending").
                running, ended = None, running
                return ray.get(ended)
            except RayTaskError as error:
                cause = error.cause
                if not left or isinstance(cause, UserError | FloatingPointError):
                    raise cause from error
                failed(f"worker 0 failed ({type(cause).__name__}: {last_line(cause)})")
            except RayError as error:
                if not left:
                    raise Lost(
                        f"{KILLED}, for want of memory perhaps, more often than scaling.max_failures "
                        f"{scaling.max_failures}"
                    ) from error
                failed(KILLED)
        raise AssertionError
    finally:
        with suppress(RayError):  # the cluster may be gone
            if running is not None:
                ray.cancel(running, force=True)
            remove_placement_group(group)
