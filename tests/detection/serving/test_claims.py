"""Whose an application is, whatever the order in which jobs come, fail and end."""

import random
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from backbone.errors import UserError
from detection.serving.claims import Claims, is_others, must_wait, told, untold

TOO_MANY = 3000  # steps of a job that waits for ever


class Killed(BaseException):
    """What ends a job's thread. Nothing in claims.py catches it, as nothing hears SIGKILL."""


@dataclass
class World:
    """Words and an application, which jobs change one step at a time, in an order that a seed draws."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    """Jobs that are killed, and before which of their steps."""
    killed: set[str] = field(default_factory=set)
    words: dict[str, str] = field(default_factory=dict)
    there: str = ""
    serving: set[str] = field(default_factory=set)
    """Jobs that put an application there and wait for Ctrl-C."""
    steps: dict[str, int] = field(default_factory=dict)
    running: dict[str, threading.Semaphore] = field(default_factory=dict)
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wrong: list[str] = field(default_factory=list)

    @property
    def job(self) -> str:
        return threading.current_thread().name

    def step(self) -> None:
        """Wait for one's turn."""
        self.done.release()
        self.running[self.job].acquire()
        self.steps[self.job] = self.steps.get(self.job, 0) + 1
        if self.steps[self.job] == TOO_MANY:
            self.wrong.append(f"{self.job} waits for ever")
        if self.steps[self.job] in (self.kills.get(self.job), TOO_MANY):
            self.killed.add(self.job)
            self.serving.discard(self.job)
            raise Killed

    def gone(self) -> set[str]:
        self.step()
        return set(self.killed)

    def put(self, key: str, value: str) -> None:
        self.step()
        self.words[key] = value

    def add(self, key: str, value: str) -> bool:
        self.step()
        if key in self.words:
            return False
        self.words[key] = value
        return True

    def read(self, start: str) -> dict[str, str]:
        self.step()
        return {key: value for key, value in self.words.items() if key.startswith(start)}

    def deploy(self, who: str, fails: bool) -> None:
        """One that fails leaves what was there, or something half done."""
        self.step()
        self.there = self.there or who if fails else who
        if not fails:
            self.serving.add(who)

    def delete(self, who: str) -> None:
        self.step()
        if self.there in self.serving - {who}:
            self.wrong.append(f"{who} took down what {self.there} serves")
        self.there = ""

    def is_there(self) -> bool:
        self.step()
        return self.there != ""

    def play(self, jobs: dict[str, Callable[[], None]]) -> None:
        draw = random.Random(self.seed)
        self.running = {name: threading.Semaphore(0) for name in jobs}
        threads = {name: threading.Thread(target=job, name=name) for name, job in jobs.items()}
        for thread in threads.values():
            thread.start()
            self.done.acquire()
        while alive := [name for name, thread in threads.items() if thread.is_alive()]:
            name = draw.choice(alive)
            self.running[name].release()
            while threads[name].is_alive() and not self.done.acquire(timeout=0.001):
                pass


def job(world: World, name: str, fails: bool) -> None:
    """What `run.start` does, and its end."""
    with suppress(Killed):
        unless_killed(world, name, fails)


def unless_killed(world: World, name: str, fails: bool) -> None:
    claims = Claims(world, "app")
    claims.catch_up(world.is_there)
    mine = claims.claim("deploys")
    while must_wait(claims.states(), mine):
        pass
    world.deploy(name, fails)
    if not fails:
        claims.say(mine, "serves")
        world.step()
        world.serving.discard(name)
    if last := claims.give_up(mine, "failed" if fails else "left"):
        world.delete(name)
        claims.say(last, "ended")


@pytest.mark.parametrize("fail", [(), ("B",), ("C",), ("B", "C"), ("A", "B", "C")])
def test_in_any_order_nobody_ends_anothers_and_nothing_is_left(fail: tuple[str, ...]) -> None:
    for seed in range(100):
        world = World(seed)
        world.play({name: partial(job, world, name, name in fail) for name in "ABC"})
        assert world.wrong == [], seed
        assert world.there == "", seed
        assert untold(Claims(Plain(world.words), "app").states(), there=False) == ""


@pytest.mark.parametrize("fail", [(), ("C",), ("A", "B", "C")])
@pytest.mark.parametrize("victims", ["A", "B", "AB"])
def test_who_is_killed_at_any_point_is_waited_for_by_nobody(fail: tuple[str, ...], victims: str) -> None:
    """And the next job takes down what such a one left, unless that had been served."""
    for seed in range(60):
        draw = random.Random(seed)
        world = World(seed, kills={name: draw.randint(1, 30) for name in victims})
        world.play({name: partial(job, world, name, name in fail) for name in "ABC"})
        assert world.wrong == [], seed
        assert world.there == "" or world.killed, seed
        states = told(Plain(world.words, gone=world.killed), "")
        assert not {"deploys", "ends"} & set(states.values()), seed  # or Serve would never be shut down
        world.play({"D": partial(job, world, "D", True)})
        assert world.wrong == [], seed
        served = {value.partition(" ")[2] for value in world.words.values() if value.startswith("serves")}
        assert served <= world.killed
        assert world.there == "" or served, seed
        world.play({"E": partial(job, world, "E", False)})
        assert (world.wrong, world.there) == ([], ""), seed


class Plain:
    """Words, and no turns."""

    def __init__(self, words: dict[str, str], job: str = "", gone: Collection[str] = ()) -> None:
        self.words, self.job, self.ended = words, job, set(gone)

    def gone(self) -> set[str]:
        return self.ended

    def put(self, key: str, value: str) -> None:
        self.words[key] = value

    def add(self, key: str, value: str) -> bool:
        return key not in self.words and self.words.update({key: value}) is None

    def read(self, start: str) -> dict[str, str]:
        return {key: value for key, value in self.words.items() if key.startswith(start)}


def test_what_stays_is_left_by_who_fails_and_taken_over_by_who_serves() -> None:
    claims = Claims(Plain({}), "app")
    assert untold(claims.states(), there=True) == "stays"
    claims.claim("stays")
    refused = claims.claim("deploys")
    assert claims.give_up(refused, "failed") == 0
    replaces = claims.claim("serves")
    assert untold(claims.states(), there=True) == ""
    last = claims.give_up(replaces, "left")
    assert must_wait(claims.states(), claims.claim("deploys"))
    claims.say(last, "ended")
    assert not must_wait(claims.states(), last + 1)


def test_what_was_taken_down_by_hand_is_not_left_to_who_served_it() -> None:
    claims = Claims(Plain({}), "app")
    first = claims.claim("serves")
    assert untold(claims.states(), there=False) == "ended"
    claims.claim("ended")
    half = claims.claim("deploys")
    assert claims.give_up(first, "left") == 0
    assert claims.give_up(half, "failed") == half + 1


def test_names_do_not_meet() -> None:
    words = Plain({})
    one, other = Claims(words, "app"), Claims(words, "app/1")
    assert (one.claim("serves"), other.claim("serves"), one.claim("deploys")) == (1, 1, 2)
    assert is_others(one.states(), 1)
    assert not is_others(other.states() | {1: "left"}, 1)


def test_who_waits_with_another_for_one_that_is_killed_waits_for_the_other_then() -> None:
    words: dict[str, str] = {}
    first, second, third = (Claims(Plain(words, name), "app") for name in "ABC")
    first.claim("deploys")
    mine, last = second.claim("deploys"), third.claim("deploys")
    assert must_wait(second.states(), mine)
    for claims in (second, third):
        claims.store.ended.add("A")  # ty: ignore[unresolved-attribute]
    assert not must_wait(second.states(), mine)
    assert must_wait(third.states(), last)
    second.say(mine, "serves")
    assert not must_wait(third.states(), last)


def test_a_job_that_never_gets_its_room_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="the extra [serve] is not installed")
    from detection.serving import run

    words: dict[str, str] = {}
    Claims(Plain(words, "A"), "app").claim("deploys")
    claims, said = Claims(Plain(words, "B"), "app"), list[str]()
    mine = claims.claim("deploys")
    monkeypatch.setattr(run, "TURN", 0.0)
    with pytest.raises(UserError, match=r"name app: .* another job .* --name OTHER --route /other"):
        run.wait_for_turn(claims, mine, "app", said.append)
    assert said == ["waiting for another job, which puts app there or takes it down"]
    words["app/1"] = "serves A"
    run.wait_for_turn(claims, mine, "app", said.append)
    assert len(said) == 1


def test_what_a_killed_job_left_is_taken_down_by_the_next_that_fails() -> None:
    words: dict[str, str] = {}
    Claims(Plain(words, "A"), "app").claim("deploys")
    claims = Claims(Plain(words, "B", gone="A"), "app")
    claims.catch_up(lambda: True)
    half = claims.claim("deploys")
    assert half == 2
    assert claims.give_up(half, "failed") == 3
    killed = Claims(Plain(words, "C", gone="AB"), "app")  # and B is killed before it says `ended`
    killed.catch_up(lambda: False)
    assert list(killed.states().values()) == ["failed", "failed", "failed"]


def test_a_look_that_another_job_overtakes_is_repeated() -> None:
    """Else `stays` would come above that job's own claim, and it would never take down what it serves."""
    words = Plain({})
    claims, other = Claims(words, "app"), Claims(words, "app")

    def there() -> bool:
        if not claims.states():
            other.claim("serves")
        return True

    claims.catch_up(there)
    assert claims.states() == {1: "serves"}
