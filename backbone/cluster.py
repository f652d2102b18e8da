"""Joining, counting and waiting for a Ray cluster, and tasks on it: the ground of training, sweeps, preparing and
detecting. Imports no torch."""

import os
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from backbone.compute import Scaling
from backbone.errors import Lost, UserError, last_line
from backbone.stopping import heed_again

T = TypeVar("T")
TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
WATCHING = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_chosen: dict[str, str] = {}
"""What `connect` made of the two."""

# Before ray is imported. Values a user has set win.
DEFAULTS = {
    "RAY_AUTH_MODE": "token",  # a driver with an address would else come without the token
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` rebuilds the environment for every worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed; 2 s by default
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # how soon it is known that a node will be taken away; 5 s by default
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # of Ray Train's own barriers, which else wait for ever
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed while executing a task",  # it is said in a line of ours
}


def set_defaults() -> None:
    """What Ray reads of the environment when it is imported, where the user has not set it."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def connect(say: Callable[[str], None]) -> tuple[Any, bool]:
    """Join the Ray cluster there is (RAY_ADDRESS, or `ray start` on this machine), or start one for this process.

    Returns the ray module and whether this call started or joined it. Worker output stays in Ray's logs: what a run has
    to say comes through the display.

    Raises:
        UserError: nobody listens at RAY_ADDRESS, the cluster wants another token, or it does not start.
    """
    set_defaults()
    import ray

    if ray.is_initialized():
        os.environ.setdefault(TRACKING, "1")
        return ray, False
    address = _address(say)
    joining = address not in (None, "local")
    # The dashboard's API shows the run. It takes a process that lasts as long as the cluster, and seconds of a core. So
    # does who looks whether nodes will be taken away, of which one machine has none but itself.
    for name in (TRACKING, WATCHING):
        if os.environ.get(name) == _chosen.get(name):  # not the user's; there may have been a cluster before
            os.environ[name] = _chosen[name] = "1" if joining else "0"
    if not joining:
        say("starting Ray on this machine")
    context = init(ray, address, say)
    if context.dashboard_url:
        say(f"Ray dashboard: http://{context.dashboard_url} (it asks for a token: ray get-auth-token)")
    return ray, True


@contextmanager
def joined(say: Callable[[str], None], needed: bool) -> Generator[Any]:
    """The ray module, for several runs one after another or at a time on one cluster; None where none is `needed`.

    The cluster is left in the end, where this joined it.

    Raises:
        UserError: as `connect`.
    """
    if not needed:
        yield None
        return
    ray, started = connect(say)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def init(ray: Any, address: str | None, say: Callable[[str], None], **settings: Any) -> Any:
    """`ray.init` with `settings`, tried three times: on a loaded machine it runs out of time.

    Raises:
        UserError: see `connect`.
    """
    from ray.exceptions import AuthenticationError

    where = f"the Ray cluster at {address}" if address not in (None, "local") else "Ray"
    if address in (None, "local"):  # of a cluster that is joined Ray would count its tries by it, too
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # 30 s by default; a loaded machine takes them
    for last in (False, False, True):
        try:
            return ray.init(address, log_to_driver=False, logging_level="warning", **settings)
        except AuthenticationError as error:
            raise UserError(
                f"the Ray cluster at {address} wants a token that is not yours: copy its ~/.ray/auth_token here, or "
                "start a cluster for this run alone with RAY_ADDRESS=local"
            ) from error
        except Exception as error:
            ray.shutdown()
            if "AF_UNIX" in str(error):
                raise UserError(
                    f"{' '.join(_temporary_folder())} is too long a path for Ray's sockets below it; name a shorter "
                    "one: RAY_TMPDIR=/tmp/r"
                ) from error
            told = next(iter(str(error).strip().splitlines()), "")[:300]
            if last or isinstance(error, ValueError | ConnectionError):
                joins = address not in (None, "local")
                token = (
                    ", compare its ~/.ray/auth_token with yours" if joins else ""
                )  # a wrong one looks like this, too
                raise UserError(
                    f"{where} does not answer ({type(error).__name__}: {told}); look at it with ray status{token} "
                    "and free the machine, or start a cluster for this run alone with RAY_ADDRESS=local"
                ) from error
            say(f"{where} did not come up ({type(error).__name__}: {told}); trying once more")
        finally:
            heed_again()
    raise AssertionError


def joins() -> bool:
    """Whether `connect` would join a cluster that runs, rather than start one that ends with this process."""
    return _address(lambda line: None) not in (None, "local")


def _address(say: Callable[[str], None]) -> str | None:
    """What to join: a cluster's address, "auto", or "local" and None for a new one.

    Raises:
        UserError: RAY_ADDRESS names none; Ray would wait for minutes to say so.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given in ("local", "auto"):
        return given
    address = given or _last_started()
    heard = _heard_at(address) if address else None
    if heard is not None and not heard.startswith(b"HTTP/1"):
        return address
    if given:
        what = "nobody listens there" if heard is None else "that is a web server, perhaps the cluster's dashboard"
        raise UserError(
            f"RAY_ADDRESS {given}: {what}; give HOST:PORT of a cluster's head (ray start --head prints it), or start a "
            "cluster for this run alone with RAY_ADDRESS=local"
        )
    if address:
        # A cluster that did not end by `ray stop` leaves its address behind; Ray would wait for it for ever.
        say(f"the Ray cluster last started here, {address}, is gone; starting another")
        return "local"
    return None


def each(
    task: Callable[[Any, int], tuple[T | None, str]],
    shared: Any,
    numbers: Iterable[int],
    parallel: int,
    needs: Mapping[str, float],
) -> Generator[T]:
    """What `task(shared, number)` gives on the joined cluster, `parallel` at a time, in the order they are done.

    `task`, a function of an installed package, gives a result, or what the user must mend: then no more are begun, and
    what is under way is finished. `needs` are Ray's options of a task, such as num_cpus.

    Raises:
        UserError: what a task said.
        Lost: a task's process ended, again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    remote, told = ray.remote(**needs)(task), ray.put(shared)
    waiting, running, failed = iter(numbers), [], ""
    try:
        while True:
            while not failed and len(running) < parallel and (number := next(waiting, None)) is not None:
                running.append(remote.remote(told, number))
            if not running:
                break
            (done,), running = ray.wait(running)
            try:
                result, fault = ray.get(done)
            except RayError as error:
                if isinstance(error, RayTaskError):  # a bug, with its traceback
                    raise
                raise Lost(f"a worker is gone: {last_line(error)}") from error
            failed = failed or fault
            if result is not None:
                yield result
    finally:
        for one in running:
            ray.cancel(one)
    if failed:
        raise UserError(failed)


def dashboard_url() -> str:
    """Address of the joined cluster's own dashboard; empty where it has none."""
    import ray

    address = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="warning").dashboard_url
    heed_again()
    return f"http://{address}" if address else ""


def _temporary_folder() -> tuple[str, str]:
    """Where Ray keeps its sockets and logs, after the variable that says so."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if os.environ.get(name) and (name != "TMPDIR" or sys.platform == "linux"):
            return name, os.environ[name]
    return "RAY_TMPDIR", "/tmp"


def _last_started() -> str:
    """Address of the cluster that `ray start` last began on this machine, which it writes down; empty: none."""
    try:
        return Path(_temporary_folder()[1], "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _heard_at(address: str) -> bytes | None:
    """The first bytes of who listens at an address when greeted as Ray's servers are (HTTP/2); None: nobody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3) as there:
            there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            there.settimeout(1)
            try:
                return there.recv(16)
            except OSError:  # TLS, or slow
                return b""
    except (OSError, ValueError):
        return None


def check_alive() -> None:
    """Lost where the node of this process left the cluster: Ray's libraries would wait for it to come back."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
        raise Lost("Ray's node on this machine is dead")


def lost(error: BaseException | None) -> bool:
    """Whether an exception comes of processes or nodes that Ray lost."""
    from ray.exceptions import RayError

    if error is None:
        return False
    # Ray ends a process that has lost its own part of the cluster by an exit.
    ended = isinstance(error, SystemExit) and error.code == 1
    return ended or isinstance(error, RayError | Lost) or lost(error.__cause__)


def draining() -> dict[str, str]:
    """Nodes of the joined cluster that will be taken away soon: their ids, and the address of each.

    No public function of Ray's tells; Ray Train, too, asks this one.
    """
    import ray
    import ray._private.state

    gone = ray._private.state.state.get_draining_nodes()
    return (
        {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in gone} if gone else {}
    )


def _staying() -> list[dict[str, float]]:
    """What each node has that lives and will not be taken away."""
    import ray

    gone = draining()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]


def room(scaling: Scaling) -> int:
    """How many of the workers that `scaling` describes the cluster's nodes hold, as they are, with nothing on them."""
    nodes = _staying()
    return sum(min(int(node.get(name, 0) // need) for name, need in bundle(scaling).items()) for node in nodes)


def places_of(scaling: Scaling, slots: int, parallel: int) -> int:
    """Runs at a time where the cluster holds `slots` of their workers now, and `parallel` are asked for (0: as many as
    fit). One at least."""
    held = slots // max(1, scaling.num_workers)
    return max(1, parallel or held) if scaling.autoscales else max(1, min(parallel or held, held))


def gpus_left_out(scaling: Scaling) -> str:
    """Says so where the cluster has GPUs and a run asks for none: `auto` looks at the driver's machine alone."""
    count = 0 if scaling.use_gpu else int(sum(node.get("GPU", 0) for node in _staying()))
    return f"on CPUs, while the cluster has {count} GPU(s): --scaling.use_gpu true takes them" if count else ""


def check_resources(scaling: Scaling) -> None:
    """UserError with the numbers where the cluster, as it is, cannot hold the workers; Ray would wait for ever."""
    needs, nodes = bundle(scaling), _staying()
    slots = room(scaling)
    needed = scaling.min_workers or scaling.num_workers
    if slots < needed and not scaling.autoscales:
        has = {name: int(sum(node.get(name, 0) for node in nodes)) for name in needs}
        no_gpu = "; there is no GPU, so on CPUs: --scaling.use_gpu false" if has.get("GPU") == 0 else ""
        raise UserError(
            f"scaling: {needed} workers of {words(needs)} each do not fit on the cluster, which has room for "
            f"{slots}: {len(nodes)} node(s) with {words(has)}. Ask for less, add nodes, or say "
            f"scaling.autoscales if they come on demand{no_gpu}"
        )


def missing(scaling: Scaling) -> str:
    """What workers that do not run yet are waiting for, as far as the cluster tells."""
    import ray

    slots, needed = room(scaling), scaling.min_workers or scaling.num_workers
    if slots < needed:
        return f"nodes are still to come, the cluster has room for {slots}"
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] == "PENDING"]
    if any(bundle(scaling) in group["bundles"].values() for group in groups):
        free, whole = ray.available_resources(), ray.cluster_resources()
        left = ", ".join(f"{free.get(name, 0):g} of {whole.get(name, 0):g} {name}" for name in bundle(scaling))
        return f"others are at work on the cluster, {left} free"
    return "their processes are starting"


def bundle(scaling: Scaling) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {})


def words(resources: dict[str, Any]) -> str:
    """For a message: `2 CPU, 1 GPU`."""
    return ", ".join(f"{count:g} {name}" for name, count in resources.items())
