"""The README.md of a detector's export: a model card in Hugging Face's format."""

from collections.abc import Sequence

import yaml

from backbone.interop.card import LIBRARIES
from detection.interop.source import Source


def write(
    source: Source,
    to: str,
    sums: dict[str, str],
    checked: Sequence[str],
    notes: Sequence[str],
    snippet: str,
    license: str,
) -> str:
    """The card of the files whose SHA-256 are `sums`."""
    loaded, made = source.loaded, source.loaded.block["provenance"]
    head = {
        "license": license,
        "library_name": LIBRARIES[to],
        "pipeline_tag": "object-detection",
        "tags": ["raybone", "object-detection", loaded.detector.options.title],
    }
    data = made.get("recipe", {}).get("data", {})
    box = made.get("metrics", {}).get("bbox", {})
    recorded = {
        "data": " ".join(filter(None, [data.get("source"), data.get("train")])) or "not recorded",
        "images": made.get("train_images"),
        "steps": made.get("steps"),
        "AP": box.get("AP"),
        "code": made.get("git"),
        "made": made.get("created"),
    }
    names = loaded.categories.names
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---",
        f"# {source.title} for {to}",
        f"A detector of {len(names)} classes, trained and exported by raybone: {', '.join(names[:100])}.",
        "## Load",
        f"```python\n{snippet}\n```",
        "## Input",
        f"RGB images of 0..255, shorter side to {loaded.inputs.size}, longer side up to {loaded.longer_side} pixels.",
        "\n".join(f"- {note}" for note in notes),
        "## Training",
        "\n".join(f"- {what}: {value}" for what, value in recorded.items() if value is not None),
        "## Checked",
        "The same images through the artifact and through these files, before they were written:",
        "```text\n" + "\n".join(checked) + "\n```",
        "```text\n" + "\n".join(f"{value}  {file}" for file, value in sums.items()) + "\n```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"
