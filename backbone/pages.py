"""What all pages look like that are one file and ask nothing of the network."""

from importlib.resources import files


def style() -> str:
    """The CSS that pages begin with; each adds its own after it."""
    return files("backbone").joinpath("page.css").read_text("utf-8").rstrip()
