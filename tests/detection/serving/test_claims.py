"""Whose an application is, whatever the order in which jobs come, fail and end."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from detection.serving.claims import Claims, is_others, must_wait, untold


@dataclass
class World:
    """Words and an application, which jobs change one step at a time, in an order that a seed draws."""

    seed: int
    words: dict[str, str] = field(default_factory=dict)
    there: str = ""
    serving: set[str] = field(default_factory=set)
    """Jobs that put an application there and wait for Ctrl-C."""
    running: dict[str, threading.Semaphore] = field(default_factory=dict)
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wrong: list[str] = field(default_factory=list)

    def step(self) -> None:
        """Wait for one's turn."""
        mine = threading.current_thread().name
        self.done.release()
        self.running[mine].acquire()

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
    claims = Claims(world, "app")
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


class Plain:
    """Words, and no turns."""

    def __init__(self, words: dict[str, str]) -> None:
        self.words = words

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
