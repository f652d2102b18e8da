"""Modules that are called: `detection.finetune(recipe)` is the job, `detection.finetune.FINETUNE` a part of it.

They were modules before they were functions, and a package has one attribute for both. Imports nothing slow.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class Called(ModuleType):
    """A module that may be called as the function of its name in `detection.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from detection import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return importlib.import_module, (self.__name__,)


def may_be_called(name: str) -> None:
    """Let the imported module of this name be called."""
    sys.modules[name].__class__ = Called
