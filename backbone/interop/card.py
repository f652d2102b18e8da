"""The README.md of an export: a model card in Hugging Face's format, with how to load it and what was proven."""

from typing import Any

import yaml

from backbone.interop.common import Source, resize_size
from backbone.interop.probe import Agreement, table

LIBRARIES = {
    "torchvision": "pytorch",
    "torchvision-detection": "pytorch",
    "timm": "timm",
    "transformers": "transformers",
    "detectron2": "detectron2",
    "mmdetection": "mmdetection",
    "onnx": "onnx",
}

HEADLESS = ("torchvision-detection", "detectron2", "mmdetection")


def write(
    source: Source,
    to: str,
    block: dict[str, Any],
    sums: dict[str, str],
    agreements: list[Agreement],
    notes: tuple[str, ...],
    snippet: str,
    license: str,
) -> str:
    """The card of the files whose SHA-256 are `sums`; `block` is the artifact's own."""
    made, net, i = block["provenance"], source.net, source.inputs
    name = net.options.called.replace(", width ", "-width-")
    data = made.get("recipe", {}).get("data", {})
    kind = data.get("source", "unknown")
    head: dict[str, Any] = {
        "license": license,
        "library_name": LIBRARIES[to],
        "pipeline_tag": "image-feature-extraction" if to in HEADLESS else "image-classification",
        "tags": ["raybone", "backbone", "object-detection", net.options.net],
        "metrics": ["accuracy"],
    }
    metrics = made.get("metrics", {})
    if "val_error" in metrics:
        held = data.get("hold_out")
        judged = f"{data.get('train')} ({held:,} images held out)" if held else data.get("val") or kind
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": judged, "type": kind},
            "metrics": [{"type": "accuracy", "name": "top-1", "value": round(1 - metrics["val_error"] / 100, 6)}],
        }
        head["model-index"] = [{"name": name, "results": [result]}]
    recorded = {
        "data": " ".join(filter(None, [data.get("source"), data.get("train")])) or "not recorded",
        "fingerprints": made.get("data"),
        "images": made.get("train_images"),
        "epochs": made.get("epochs"),
        "metrics": ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items()),
        "imported from": made.get("imported", {}).get("file"),
        "code": made.get("git"),
        "made": made.get("created"),
    }
    options = yaml.safe_dump(net.options.model_dump(mode="json"), sort_keys=False).strip()
    stages = ", ".join(f"{k} {s.channels} channels at stride {s.stride}" for k, s in net.stages.items())
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---",
        f"# {name} for {to}",
        f"A backbone of {net.num_classes} classes, pretrained and exported by raybone. Stage maps: {stages}.",
        "## Load",
        f"```python\n{snippet}\n```",
        "## Input",
        f"RGB images of 0..255, shorter side to {resize_size(i)}, centre of {i.size} pixels, {i.interpolation}. On the "
        f"0..1 scale, red green blue: mean {list(i.mean)}, std {list(i.std)}. It was trained on {i.channel_order}. "
        "Normalise once: detectors do it themselves.",
        "\n".join(f"- {note}" for note in notes),
        "## Intended use",
        "Initialising detectors and segmenters, and classifying images like those it was trained on. Keep its norms "
        "frozen, or give them batches of 16 and more images; statistics of two images ruin them. It was not examined "
        "for bias, nor for uses where errors harm people.",
        "## Training",
        "\n".join(f"- {what}: {value}" for what, value in recorded.items() if value),
        f"```yaml\n{options}\n```",
        _recipe(made),
        "## Checked",
        "The same image through the artifact and through these files, before they were written:",
        f"```text\n{table(agreements)}\n```",
        "```text\n" + "\n".join(f"{value}  {file}" for file, value in sums.items()) + "\n```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def _recipe(made: dict[str, Any]) -> str:
    if "recipe" not in made:
        return "Recipe: not recorded."
    text = yaml.safe_dump(made["recipe"], sort_keys=False).strip()
    return f"<details><summary>Recipe</summary>\n\n```yaml\n{text}\n```\n\n</details>"
