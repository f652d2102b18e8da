"""Packages that only a part of raybone needs. Imports nothing slow."""

import re
from importlib.metadata import PackageNotFoundError, requires


def how_to_install(extra: str) -> str:
    """What to type for the packages of an extra: in the repository, or beside an installed wheel.

    They are named themselves, since no registry has raybone, and a wheel's place is not known here.
    """
    here = f"uv sync --inexact --extra {extra}"
    try:
        told = requires("raybone") or []
    except PackageNotFoundError:  # a folder on the path, and nothing installed
        return here
    marked = re.compile(rf"extra == ['\"]{extra}['\"]")
    packages = [wanted.partition(";")[0].strip() for wanted in told if marked.search(wanted)]
    return f"{here}, or pip install " + " ".join(f"'{package}'" for package in packages)
