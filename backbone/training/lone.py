"""One worker on the cluster, without Ray Train: that starts six processes beside it, 25 s of processor time, to connect
workers, and this one has nobody to be connected with.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backbone.cluster import bundle, draining
from backbone.compute import Scaling
from backbone.errors import Lost, UserError, last_line
from backbone.training.post import Post

KILLED = "was killed or its node was lost"

LEFT = "left"
"""Key of what a worker returns that left its place, with the reason."""

GOING_ON = "going on from the newest checkpoint if restarts are left"


def failed_record(how: str, counts: bool) -> dict[str, Any]:
    """For the run's output: a worker failed. `counts`: as one of `max_failures`, which a node taken away does not."""
    text = f"{how}; {GOING_ON if counts else 'going on from the newest checkpoint'}"
    return {"kind": "say", "text": text, "restarts": True, "failure": counts}


def run_alone(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    told: dict[str, Any],
    scaling: Scaling,
    post: Post,
    wait_for: Callable[[Callable[[float], bool]], None],
) -> dict[str, Any]:
    """`function(told)` in a process of the cluster; where that is lost or fails, again, `max_failures` times.

    Where its node will be taken away, it is asked by the `post` to leave, and begun again elsewhere. `wait_for` is
    `stopping.until`.

    Raises:
        UserError: a mistake of the user's, found there.
        FloatingPointError: the training diverged.
        Lost: the process was killed or lost more often than `max_failures`.
        Stopped: somebody stopped it; the process is ended.
        Exception: what `function` raised each time.
    """
    from ray.exceptions import RayError, RayTaskError

    left = scaling.max_failures
    while True:
        attempt = _Attempt(function, told, scaling, post)
        try:
            wait_for(attempt.is_done)
            result = attempt.result()
            if LEFT not in result:
                return result
        except RayTaskError as error:
            cause = error.cause
            if not left or isinstance(cause, UserError | FloatingPointError):
                raise cause from error
            left -= 1
            post.put(failed_record(f"worker 0 failed ({type(cause).__name__}: {last_line(cause)})", True))
        except RayError as error:
            if attempt.asked:
                post.put(failed_record("worker 0's node was taken away", False))
            elif not left:
                raise Lost(
                    f"worker 0 {KILLED}, for want of memory perhaps, more often than scaling.max_failures "
                    f"{scaling.max_failures}"
                ) from error
            else:
                left -= 1
                post.put(failed_record(f"worker 0 {KILLED}", True))
        finally:
            attempt.end()


class _Attempt:
    """One process that runs the function."""

    def __init__(
        self,
        function: Callable[[dict[str, Any]], dict[str, Any]],
        told: dict[str, Any],
        scaling: Scaling,
        post: Post,
    ) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.post, self.asked = post, ""
        # A group, as Ray Train's workers have: by it others see what training holds, and what it waits for. Each
        # attempt has its own: the one before may lie on a node that will be taken away.
        self.group = placement_group([bundle(scaling)])
        # On a GPU the process ends with its task, and gives all its memory back. On CPUs the next run takes it over: to
        # start another and to import what training needs takes seconds, which small runs have many of.
        task = ray.remote(max_calls=1 if scaling.use_gpu else 0)(function).options(
            num_cpus=scaling.cpus_per_worker,
            num_gpus=int(scaling.use_gpu),
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group),
            name="LoneWorker",
        )
        self.running: Any = task.remote(told)

    def is_done(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most. Meanwhile it is asked to leave if its node will go."""
        import ray

        if ray.wait([self.running], timeout=seconds)[0]:
            return True
        if self.asked:
            self.post.ask(self.asked)
        elif gone := draining():
            for node in ray.util.placement_group_table(self.group)["bundles_to_node_id"].values():
                if node in gone:
                    self.asked = f"node {gone[node]} will be taken away"
                    self.post.ask(self.asked)
        return False

    def result(self) -> dict[str, Any]:
        """What the function returned or raised."""
        import ray

        # Ray shows a result before it has closed its books on the task; one that is cancelled in between makes Ray
        # abort this process ("Tried to complete task that was not pending").
        running, self.running = self.running, None
        return ray.get(running)

    def end(self) -> None:
        """End the process if it still runs, and give back its place."""
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import remove_placement_group

        with suppress(RayError):  # the cluster may be gone
            if self.running is not None:
                ray.cancel(self.running, force=True)
            remove_placement_group(self.group)
        self.post.ask("")
