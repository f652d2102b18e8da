"""Ray Train's own parts, fewer of them and sooner: each process that Ray starts takes a second or two of a core.

Built on what Ray 2.60, to which pyproject.toml holds, calls internal.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backbone.cluster import WATCHING
from backbone.errors import Lost, UserError


def begin_sooner() -> None:
    """Start the process that tells Ray's autoscaler what is asked for, unless the cluster has it.

    Ray's controller would start it, and wait for it before it places workers.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


def trainer_class(tell: Callable[[Exception], None]) -> Any:
    """`TorchTrainer` without those of Ray's processes that have nothing to do here, and the others in plain ones.

    One hands out Ray's datasets, of which we have none. One frees the workers' places where Ray's controller is killed,
    which a cluster that ends with this process does by itself. `tell`: see `_failure_policy`.
    """
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal import constants
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    idle = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if os.environ.get(WATCHING) == "0" else set())

    class Trainer(TorchTrainer):  # ty: ignore[unsupported-base]
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if type(one).__name__ not in idle]

        def _initialize_and_run_controller(self, **given: Any) -> Any:
            settings = constants.get_env_vars_to_propagate()
            silent = constants.DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
            settings.setdefault(constants.RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, silent)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            kind = ray.remote(_controller_class(settings)).options(num_cpus=0, scheduling_strategy=here)
            policy = _failure_policy(self.run_config.failure_config, tell)
            controller = kind.remote(**given | {"failure_policy": policy})
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

    return Trainer


def _failure_policy(config: Any, tell: Callable[[Exception], None]) -> Any:
    """Ray Train's own, but for workers that die or fail before they run what they are there for.

    Some of these Ray begins again for ever, without a word, and for others it gives up. Here each is told of, and
    counts as any other failure does, but where the worker's node was taken away. `tell` is called in Ray's controller.
    """
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    class FailurePolicy(DefaultFailurePolicy):
        def make_decision(self, training_failed_error: Any) -> Any:
            cause = getattr(training_failed_error, "controller_failure", None)
            died = cause.__cause__ if isinstance(cause, WorkerGroupStartupFailedError) else cause
            if not isinstance(died, RayError) or isinstance(died, UserError | FloatingPointError):
                return super().make_decision(training_failed_error)
            with suppress(RayError, Lost):  # the driver may be away; that decides nothing
                tell(died)
            if is_preempted(died):
                return FailureDecision.RETRY
            self._worker_group_failures += 1
            is_over = self._worker_group_failures > self.failure_config.max_failures
            return FailureDecision.RAISE if is_over else FailureDecision.RETRY

    return FailurePolicy(config)


def is_preempted(died: Exception) -> bool:
    """Whether a process died with a node that was being taken away."""
    return bool(getattr(died, "preempted", False))


def _controller_class(settings: dict[str, str]) -> Any:
    """Ray Train's controller, with environment variables that it and its workers set themselves.

    Ray would hand them over as a runtime environment: for that it starts Python once more in front of each process,
    and takes none of those it keeps ready. Classes of a function travel whole, and their variables with them.
    """
    from ray.train.v2._internal.execution import controller, worker_group

    class RayTrainWorker(worker_group.worker.RayTrainWorker):
        def __init__(self) -> None:
            os.environ.update(settings)
            super().__init__()

    class WorkerGroup(worker_group.WorkerGroup):
        _worker_cls = RayTrainWorker

        def _start(self) -> None:
            """Ray's, which leaves the workers' places taken where one dies after it was set up."""
            try:
                super()._start()
            except Exception:
                if self._worker_group_state is not None:
                    self._worker_group_state.shutdown()
                    self._worker_group_state = None
                raise

        @staticmethod
        def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
            return custom_runtime_env

    class TrainController(controller.TrainController):
        worker_group_cls = WorkerGroup

        def __init__(self, **given: Any) -> None:
            os.environ.update(settings)
            super().__init__(**given)

    return TrainController
