"""The Ray side: replicas that hold artifacts, fronts that hand them requests, and putting both on a cluster.

A front outlives the replicas it asks: where one dies with a question, the front asks another. `application` is what a
Ray Serve configuration file names, with the options of `jobs/serve.py` as its `args`:

    import_path: detection.serving.run:application
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray._private.state
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from ray.util.metrics import Counter, Histogram

from backbone.cli import validate
from backbone.cluster import bundle, connect, joins, room, words
from backbone.compute import Scaling
from backbone.errors import UserError, last_line
from backbone.stopping import heed_again
from detection.serving.app import make_app
from detection.serving.claims import Claims, must_wait, told
from detection.serving.models import Look, Model, answers, described, load, look, prepare_process
from detection.serving.options import LOOPBACK, TOKEN, Serving, token_hash
from detection.serving.questions import MEGA, Answer, Question, Refused, too_many
from detection.serving.queue import Groups, Room

DEATHS = 3  # replicas that may die of a question before it is refused: it may be what they die of
TURN = 1800.0  # seconds that another job may take until its application is there, or gone
PAUSE = 0.2  # seconds until an old replica, which does not know a new artifact yet, is asked again
DEEP = 8  # times what a replica is working on may lie in its own queue, so that it is never without work
BACKOFF = 0.05  # seconds, at most, until a front asks again whether a full replica has room; Serve's 0.5 leave it idle
HANDED = 64 * MEGA  # bytes of bodies, for each replica there may be, that a front hands over before some are answered
SURGE = 25  # percent of the replicas that are started beside the old ones when they are replaced, at least one
SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
GRACE = 5  # seconds beyond those of a request, in which what is replaced or ended answers what it has begun
WORDS = "raybone-serve"  # where claims lie on the cluster
Key = tuple[str, str, tuple[int, int]]  # model, task, padded sides
Say = Callable[[str], None]


class Replica:
    """Holds artifacts, each verified before this replica is asked anything, and answers questions of them."""

    async def __init__(self, tree: dict[str, Any], hashes: dict[str, str]) -> None:
        self.options = Serving.model_validate(tree)
        self.hashes, self.urls = hashes, self.options.named()
        self.device = prepare_process(self.options.cpus_per_replica, self.options.use_gpu)
        # Images are decoded while the net computes, one at a time each; no more lie decoded than come next.
        self.decoding, computing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.decoded = asyncio.Semaphore(under_way(self.options))
        self.groups = Groups[Key, tuple[Model, Look], Answer](self._compute, self.options.batch, computing)
        tags = ("model", "task")
        self.seconds = Histogram("raybone_compute_seconds", "Of a group of images.", SECONDS, tags)
        self.images = Counter("raybone_images", "Images that went through a net.", tags)

        async def loaded(name: str) -> Model:
            return await asyncio.get_running_loop().run_in_executor(self.decoding, self._load, name)

        keep = self.options.resident or len(self.urls)
        self.model = serve.multiplexed(max_num_models_per_replica=keep)(loaded)
        for name in reversed(self.urls):
            await self.model(name)

    def _load(self, name: str) -> Model:
        model = load(name, self.urls[name], self.device)
        if model.sha256 != self.hashes[name]:
            raise UserError(f"{self.urls[name]}: is another artifact than when it was put here; serve it again")
        return model

    async def answer(self, question: Question) -> Answer | Refused:
        """What the model says, or why it is not asked."""
        if question.model not in self.urls:
            return Refused(404, "not_here", f"this replica has no {question.model} yet")
        async with self.decoded:
            try:
                model = await self.model(question.model)
                loop = asyncio.get_running_loop()
                seen = await loop.run_in_executor(self.decoding, look, model, question, self.options.limits)
            except Refused as refused:
                return refused
            except UserError as error:
                return Refused(503, "artifact_gone", str(error))
            return await self.groups.ask((model.name, question.task, seen.sides), (model, seen))

    def _compute(self, key: Key, asked: Any) -> list[Answer]:
        began = time.perf_counter()
        found = answers(asked[0][0], [seen for _, seen in asked])
        tags = {"model": key[0], "task": key[1]}
        self.seconds.observe(time.perf_counter() - began, tags)
        self.images.inc(len(asked), tags)
        return found


@serve.ingress()
class Front:
    """Reads and checks requests, and asks replicas."""

    def __init__(self, replicas: DeploymentHandle, tree: dict[str, Any], models: list[dict[str, Any]], token: str):
        self.replicas, self.models, self.token = replicas, models, token
        options = Serving.model_validate(tree)
        self.limits, self.chooses = options.limits, bool(options.resident)
        # Here they wait in turn, where Serve's router would ask full replicas again and again.
        self.handed = Room(options.max_replicas * DEEP * under_way(options), options.max_replicas * HANDED)
        tags = ("route", "model", "status")
        self.requests = Counter("raybone_requests", "Requests answered or refused.", tags)
        self.seconds = Histogram("raybone_request_seconds", "From a request to its answer.", SECONDS, tags)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.models, self.limits, self.token, self._ask, self._observe)

    async def _ask(self, question: Question) -> Answer | Refused:
        """Asked again where the replica died, which answering twice does not hurt."""
        handle = self.replicas.options(multiplexed_model_id=question.model) if self.chooses else self.replicas
        async with self.handed.of(len(question.data)):
            return await self._asked(handle, question)

    async def _asked(self, handle: DeploymentHandle, question: Question) -> Answer | Refused:
        for _ in range(DEATHS):
            try:
                while isinstance(found := await _answer(handle, question), Refused) and found.code == "not_here":
                    await asyncio.sleep(PAUSE)  # an old replica, which will soon be gone
                return found
            except BackPressureError:
                return too_many(self.limits)
            except RayActorError:
                continue
            except RayServeException as error:
                return Refused(503, "unavailable", f"no replica runs ({type(error).__name__}); try again later")
        return Refused(503, "replicas_died", f"{DEATHS} replicas died with this request; their logs may say why")

    def _observe(self, route: str, model: str, status: int, seconds: float) -> None:
        tags = {"route": route, "model": model, "status": str(status)}
        self.requests.inc(1, tags)
        self.seconds.observe(seconds, tags)


async def _answer(handle: DeploymentHandle, question: Question) -> Answer | Refused:
    """A replica's answer; who stops waiting for it takes the question back, so that nobody computes it."""
    response = handle.answer.remote(question)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def application(args: dict[str, Any]) -> serve.Application:
    """What a Ray Serve configuration file names. It always wants a token, since others bind the address.

    Raises:
        UserError: a mistake in the options, an artifact that does not verify, or no token.
    """
    options = validate(Serving, {**args, "host": "0.0.0.0"}, "args")
    return bound(options, token_hash(options), verified(options))


def verified(options: Serving, say: Say = lambda line: None) -> list[dict[str, Any]]:
    """What `/models` says of each artifact, which was loaded here and has answered its probe.

    Raises:
        UserError: one is none, or damaged.
    """
    found = []
    for name, url in options.named().items():
        found.append(described(load(name, url)))
        say(f"verified  {name}: {found[-1]['kind']} of {len(found[-1]['classes'])} classes, {url}")
    return found


def under_way(options: Serving) -> int:
    """Questions that a replica works on at a time: one group computes while the next one is decoded."""
    return 2 * options.batch


def bound(options: Serving, token: str, models: list[dict[str, Any]]) -> serve.Application:
    """The application of verified models; `token` is the hash of what requests must bring."""
    tree, hashes = options.model_dump(), {model["name"]: model["sha256"] for model in models}
    resources = {"num_cpus": options.cpus_per_replica, "num_gpus": int(options.use_gpu)}
    replica = serve.deployment(
        name="replica",
        ray_actor_options=resources,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": under_way(options),
        },
        max_ongoing_requests=DEEP * under_way(options),
        max_queued_requests=options.limits.waiting,
        request_router_config=RequestRouterConfig.model_validate({"max_backoff_s": BACKOFF}),
        max_surge_percent=SURGE,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=options.limits.seconds + GRACE,
        health_check_period_s=2,
    )(Replica)
    front = serve.deployment(
        name="front",
        num_replicas=options.fronts,
        ray_actor_options={"num_cpus": 0},
        # It refuses itself, in words, what is more than `limits.waiting`, and the proxy what is more than that.
        max_ongoing_requests=2 * options.limits.waiting,
        max_queued_requests=options.limits.waiting,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_surge_percent=SURGE,
        graceful_shutdown_timeout_s=options.limits.seconds + GRACE,
    )(Front)
    return front.bind(replica.bind(tree, hashes), tree, models, token)


def start(options: Serving, say: Say = print) -> Callable[[], None]:
    """Put it on the cluster that runs, or on one of this process's own; what ends it is returned.

    Raises:
        UserError: an artifact does not verify, there is no token, no room, or the address is not to be had.
    """
    token = token_hash(options)
    joined = joins()
    if options.detach and not joined:
        raise UserError(
            "detach: no Ray cluster runs here, and one of this command's own ends with it: ray start --head"
        )
    models = verified(options, say)
    _, started = connect(say)
    check_room(options)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    store = Words()
    claims, mine, listens, served = Claims(store, options.name), 0, False, False

    def end() -> None:
        if mine and (last := claims.give_up(mine, "left" if served else "failed")):
            _take_down(options.name, say, lambda: claims.say(last, "ended"))
        if joined and listens and not _there() and "deploys" not in told(store, "").values():
            serve.shutdown()
        if started:
            ray.shutdown()

    try:
        claims.catch_up(lambda: options.name in _there())
        mine = claims.claim("deploys")
        listens = _listen(options)
        wait_for_turn(claims, mine, options.name, say)
        serve.run(bound(options, token, models), name=options.name, route_prefix=options.route)
        claims.say(mine, "stays" if options.detach else "serves")
        served = True
    except (RuntimeError, RayServeException) as error:
        raise UserError(
            f"{options.name}: Ray Serve does not take it: {last_line(error)}; see ray logs serve"
        ) from error
    finally:
        heed_again()
        if not served:  # stopped meanwhile, or refused: nothing is left half served
            end()
    host = f"[{options.host}]" if ":" in options.host else options.host
    where = f"http://{host}:{options.port}{options.route.rstrip('/')}/"
    needs = f"it wants the token of {options.token_file or TOKEN}" if token else "no token is needed from this machine"
    say(f"serving   {where} ({needs})")
    return end


def wait_for_turn(claims: Claims, mine: int, name: str, say: Callable[[str], None]) -> None:
    """Wait while another job, which lives, puts its application there or takes it down.

    Raises:
        UserError: that takes longer than `TURN`.
    """
    if must_wait(claims.states(), mine):
        say(f"waiting for another job, which puts {name} there or takes it down")
    late = time.monotonic() + TURN
    while must_wait(claims.states(), mine):
        if time.monotonic() > late:
            raise UserError(
                f"name {name}: for {TURN / 60:.0f} min another job has been putting it there or taking it down; end "
                "that job, or serve beside it: --name OTHER --route /other"
            )
        time.sleep(PAUSE)


class Words:
    """What jobs tell each other, on the cluster's head."""

    def __init__(self) -> None:
        self.job = ray.get_runtime_context().get_job_id()

    def put(self, key: str, value: str) -> None:
        _internal_kv_put(key, value, namespace=WORDS)

    def add(self, key: str, value: str) -> bool:
        return not _internal_kv_put(key, value, overwrite=False, namespace=WORDS)

    def read(self, start: str) -> dict[str, str]:
        keys = _internal_kv_list(start, namespace=WORDS)
        return {key.decode(): (_internal_kv_get(key, namespace=WORDS) or b"").decode() for key in keys}

    def gone(self) -> set[str]:
        """Of the head's table of jobs; the public `list_jobs` asks the dashboard, which need not run."""
        return {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}


def _there() -> set[str]:
    """Names of the applications that are there to stay."""
    return {name for name, one in serve.status().applications.items() if one.status != ApplicationStatus.DELETING}


def _take_down(name: str, say: Say, ended: Callable[[], None]) -> None:
    """Delete an application, if it is there. Whatever comes of that, it has `ended`, so that nobody waits for it."""
    try:
        if name in serve.status().applications:
            serve.delete(name)
    except TimeoutError:  # after Serve's 60 s, which may be less than a request's
        say(f"{name}: Ray Serve has not taken it down in 60 s, and goes on with it: serve status tells")
    finally:
        ended()


def check_room(options: Serving) -> None:
    """UserError with the numbers where the cluster, as it is, cannot hold `min_replicas`; Ray would wait for ever."""
    workers = Scaling(
        num_workers=options.min_replicas, use_gpu=options.use_gpu, cpus_per_worker=options.cpus_per_replica
    )
    slots = room(workers)
    if slots < options.min_replicas:
        no_gpu = ", or leave --use_gpu off" if options.use_gpu else ""
        raise UserError(
            f"min_replicas {options.min_replicas}: the cluster's nodes have room for {slots} replicas of "
            f"{words(bundle(workers))}; give a lower --min_replicas or --cpus_per_replica{no_gpu}, or add nodes"
        )


def _listen(options: Serving) -> bool:
    """Start Ray Serve, or find that it listens where it is to. Returns whether it was started.

    Raises:
        UserError: the address is taken, or Ray Serve runs and listens at another one, where others may reach it.
    """
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is None:
        check_free(options.host, options.port)
        where = "HeadOnly" if options.host in LOOPBACK else "EveryNode"
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(where, {"host": options.host, "port": options.port}, logging_config=quiet)
        return True
    there = running.http_config
    if (there.host, there.port) != (options.host, options.port):
        raise UserError(
            f"Ray Serve runs on this cluster and listens at {there.host}:{there.port}, not at {options.host}:"
            f"{options.port}: give --host {there.host} --port {there.port}, or end it first: serve shutdown"
        )
    return False


def check_free(host: str, port: int) -> None:
    """UserError where an address, of either family, is not to be had; Serve's proxy would wait for ever."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(
            f"host {host}, port {port}: {error}; give another --port. To replace what another jobs/serve.py serves "
            "there, both must be on one cluster: end it, ray start --head, and serve again"
        ) from error
