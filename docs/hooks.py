"""What MkDocs does beside rendering pages: pages from outside docs/, the reference of recipes, and links.

Pages are written for GitHub. On the site, links to what is no part of it are shown as plain paths: the repository has
no public address that is known.
"""

import base64
import inspect
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

from backbone.analyse.options import Analysis
from backbone.console import commands
from backbone.data.doctor_options import Doctor
from backbone.data.prepare.options import Prepare
from backbone.evaluate.options import BackboneEvaluation
from backbone.interop.options import Export, Import
from backbone.pruning import Listing
from backbone.sweep.options import Sweep
from backbone.training.recipe import Recipe
from backbone.usage import rows
from detection.alternating import Alternating
from detection.detecting.options import Detecting
from detection.gains_recipe import Gains
from detection.improvements.entry import Entry
from detection.localisation.options import LocaliserEvaluation
from detection.localisation.recipe import Localise
from detection.recipe import DetectorEvaluation, Finetune
from detection.serving.options import Serving
from detection.submission.options import Submission

ROOT = Path(__file__).parents[1]
TAKEN_IN = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files beside docs/ that are pages, too -> their names there."""

NOTEBOOKS = ("tour.ipynb",)
MODELS: dict[str, tuple[type[BaseModel], ...]] = {
    "pretrain": (Recipe,),
    "finetune": (Finetune,),
    "gains": (Gains,),
    "sweep": (Sweep,),
    "evaluate": (DetectorEvaluation, BackboneEvaluation, LocaliserEvaluation),
    "localise": (Localise,),
    "entry": (Entry,),
    "alternate": (Alternating,),
    "submit": (Submission,),
    "detect": (Detecting,),
    "serve": (Serving,),
    "doctor": (Doctor,),
    "prepare": (Prepare,),
    "import": (Import,),
    "export": (Export,),
    "analyse": (Analysis,),
    "list": (Listing,),
}
"""Job -> what it reads. Of `evaluate` with --detector, with --backbone, and with --localiser."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not written in docs/."""
    for source, page in TAKEN_IN.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for job, models in MODELS.items():
        files.append(File.generated(config, f"reference/{job}.md", content=reference(job, models)))
    for name in NOTEBOOKS:
        text, pictures = notebook(json.loads((ROOT / "docs" / name).read_text("utf-8")), Path(name).stem)
        files.append(File.generated(config, str(Path(name).with_suffix(".md")), content=text))
        for picture, content in pictures.items():
            files.append(File.generated(config, picture, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links where their ends are on the site; of ends that are not there show the path."""
    uri = page.file.src_uri
    source = next((name for name, taken in TAKEN_IN.items() if taken == uri), f"docs/{uri}")
    here = {file.src_uri for file in files}
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else relinked(part, source, uri, here) for part in parts)


def relinked(text: str, source: str, uri: str, here: set[str]) -> str:
    """Markdown with links as the site has them.

    Args:
        text: without fenced blocks.
        source: the file it is from, relative to the repository's root.
        uri: the page it is.
        here: all files of the site.
    """

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        path, mark, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        parts = list[str]()
        for part in (PurePosixPath(source).parent / path).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        there = "/".join(parts)
        on_site = TAKEN_IN.get(there, there.removeprefix("docs/"))
        if on_site in NOTEBOOKS:
            on_site = str(PurePosixPath(on_site).with_suffix(".md"))
        if on_site in here:
            up = "../" * (len(PurePosixPath(uri).parts) - 1)
            return f"{image}[{words}]({up}{on_site}{mark}{anchor})"
        plain = words.strip("`").removesuffix("/")
        return f"`{there}`" if there.endswith(plain) else f"{words} (`{there}`)"

    return LINK.sub(link, text)


def reference(job: str, models: tuple[type[BaseModel], ...]) -> str:
    """The page of a job: what it does, and every field of what it reads, from the models themselves."""
    lines = [f"# {job}", "", f"{commands()[job]}.", "", f"`python jobs/{job}.py`, or `raybone {job}`.", ""]
    for model in models:
        if len(models) > 1:
            lines += [f"## {model.__name__}", ""]
        lines += [inspect.cleandoc(model.__doc__ or "").strip(), ""]
        sections = dict[str, list[tuple[str, str, str, str]]]()
        for row in rows(model):
            sections.setdefault(row[0].rpartition(".")[0], []).append(row)
        for section, fields in sections.items():
            lines += [f"## `{section}`", ""] if section else []
            lines += ["| field | value | default | |", "|---|---|---|---|"]
            for name, kind, text, value in fields:
                default = value.removeprefix("(default: ").removesuffix(")")
                cells = [f"`{name}`", f"`{kind}`", f"`{default}`" if default else "", text]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
    return "\n".join(lines)


def notebook(tree: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with the outputs that it was saved with, and its pictures by their paths."""
    lines, pictures = list[str](), dict[str, bytes]()
    for cell in tree["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                path = f"{name}-{len(pictures)}.png"
                pictures[path] = base64.b64decode("".join(data["image/png"]))
                lines += [f"![output]({path})", ""]
            elif "text/markdown" in data:
                lines += ["".join(data["text/markdown"]), ""]
            else:
                text = "".join(output.get("text", data.get("text/plain", [])))
                lines += ["```text", text.rstrip(), "```", ""]
    return "\n".join(lines), pictures
