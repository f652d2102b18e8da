"""The options that mend a fault of an import, as they are typed."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from backbone.errors import UserError
from backbone.interop.common import Facts
from backbone.interop.options import Import

Words = dict[str, tuple[str, ...]]
"""Option -> what is typed after it."""


@dataclass(frozen=True)
class Way:
    """Options with which a file can be imported, and what speaks for them."""

    words: Words
    comment: str = ""


class Advice(UserError):
    """A fault of an import, and the options that mend it, as they are typed."""

    def __init__(self, fault: str, ways: Sequence[Way]) -> None:
        self.fault, self.ways = fault, tuple(ways)
        super().__init__(self._text(typed))

    def commands(self, options: Import) -> UserError:
        """The same with whole commands: what was typed, mended."""
        mended = ("source", "entry", "prefix", "drop")

        def command(words: Words) -> str:
            kept = {name: values for name, values in _given(options).items() if name not in mended or not self._moves}
            whole = {**kept, **words}
            return (
                f"python jobs/import.py {typed({name: whole[name] for name in Import.model_fields if name in whole})}"
            )

        return UserError(self._text(command))

    @property
    def _moves(self) -> bool:
        """Whether the ways say where the weights are, so that what was said of that gives way."""
        return any("source" in way.words for way in self.ways)

    def _text(self, written: Callable[[Words], str]) -> str:
        lines = [self.fault + (". To be typed:" if self.ways else "")]
        for i, way in enumerate(self.ways):
            lines += [f"{'or, ' if i else ''}{way.comment}:"] if way.comment else []
            lines.append(f"  {written(way.words)}")
        return "\n".join(lines)


def typed(words: Words) -> str:
    """Options as they are typed."""
    return " ".join(f"--{name} {shlex.join(values)}" for name, values in words.items())


def _given(options: Import) -> Words:
    """The options that are not as they are by default."""
    found: Words = {}
    for name, info in Import.model_fields.items():
        value = getattr(options, name)
        if info.is_required() or value != info.get_default(call_default_factory=True):
            parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            found |= {key: _values(part) for key, part in parts.items()}
    return found


def _values(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(part for item in value for part in _values(item))
    if isinstance(value, float):
        return (f"{value:.6g}",)
    return (str(value).lower() if isinstance(value, bool) else str(value),)


def fact_words(facts: Facts) -> Words:
    """Facts as options."""
    given = {field.name: getattr(facts, field.name) for field in fields(Facts)}
    return {name: _values(value) for name, value in given.items() if value is not None}
