"""What `jobs/analyse.py` does: the measures of several nets, as pictures and as the numbers they are drawn from."""

import json
import statistics
from typing import Any

import torch

from backbone import artifact
from backbone.analyse.figures import draw_gradients, draw_responses, draw_scaling
from backbone.analyse.measures import gradient_norms, layer_responses, no_responses, shortcut_factors, shortcut_path
from backbone.analyse.options import Analysis
from backbone.data.batches import ValSet
from backbone.data.sources import Source, none_readable
from backbone.errors import UserError
from backbone.evaluate.evaluation import class_targets, open_images, training_of
from backbone.inputs import InputConvention
from backbone.nets import Backbone, build
from backbone.options import NetOptions
from backbone.provenance import environment
from backbone.storage import check_kept, write_folder


def analyse(options: Analysis) -> dict[str, Any]:
    """Everything that `jobs/analyse.py` writes: pictures, and the numbers they are drawn from. Returns the numbers.

    Raises:
        UserError: an artifact does not verify, has no units or reads another size; bad data; the output cannot be
            written.
    """
    check_kept(options.output, "output")
    loaded = [(url, *artifact.load(url)) for url in options.backbone]
    plain = InputConvention(size=options.size, crop_pct=1.0)
    size, crop_pct = (loaded[0][2].size, loaded[0][2].crop_pct) if loaded else (plain.size, plain.crop_pct)
    if any(inputs.size != size for _, _, inputs, _ in loaded):
        raise UserError("backbone: nets that read images of different sizes cannot share a figure; analyse them apart")
    data = options.data.model_copy(update={"size": size, "crop_pct": crop_pct})
    source = open_images(data, options.seed)
    count = min(options.images, len(source))
    ids = [i * len(source) // count for i in range(count)]
    batch = ValSet(source, data).batch(ids)
    read = batch["labels"] >= 0
    if not read.any():
        raise none_readable(batch["bad"])
    labels, pixels = batch["labels"][read], batch["images"][read]
    images = plain.normalize(pixels)
    gradients, responses, scaling = [], [], []
    left_out: dict[str, str] = {}
    for depth in options.depths:
        for shortcut in ("none", "A"):
            net = initial(NetOptions(net="cifar_resnet", depth=depth, shortcut=shortcut), options.seed, source)
            rows = gradient_norms(net, images, labels)
            gradients.append({**about(net), "state": "at initialisation", "of": f"seed {options.seed}", "units": rows})
    for url, net, inputs, block in loaded:
        seen = inputs.normalize(pixels)
        places = torch.from_numpy(class_targets((url,), [block["classes"]], net.num_classes, source))
        of = {**about(net), "of": url, "trained": training_of(block["provenance"])}
        gradients.append({**of, "state": "trained", "units": gradient_norms(net, seen, places[labels])})
        if reason := no_responses(net):
            left_out[url] = reason
        else:
            responses.append({**of, "layers": layer_responses(net, seen.split(32))})
    for scale in options.scales if options.depths else ():
        scaled = NetOptions(net="cifar_resnet", depth=max(options.depths), shortcut="A", shortcut_scale=scale)
        net = initial(scaled, options.seed, source)
        rows = gradient_norms(net, images, labels)
        measured = shortcut_path(scaled, images[:2])
        closed = shortcut_factors(scale, len(measured))
        scaling.append({"scale": scale, **about(net), "units": rows, "measured": measured, "closed_form": closed})
    record = {
        "gradients": gradients,
        "responses": responses,
        "without_responses": left_out,
        "scaling": scaling,
        "provenance": {
            "analysis": options.model_dump(mode="json"),
            "images": len(labels),
            "unreadable_names": batch["bad"],
            "data": {"val": source.fingerprint},
            "backbones": {url: block["weights_sha256"] for url, _, _, block in loaded},
            **environment(),
        },
    }
    files = {}
    if gradients:
        files["gradients.png"] = draw_gradients(gradients)
    if responses:
        files["responses.png"] = draw_responses(responses)
    if scaling:
        files["scaling.png"] = draw_scaling(scaling, scaling[0]["name"])
    write_folder(options.output, {**files, "analysis.json": (json.dumps(record, indent=1) + "\n").encode()}, "analysis")
    return record


def initial(options: NetOptions, seed: int, source: Source) -> Backbone:
    """The net as it begins."""
    torch.manual_seed(seed)
    return build(options, len(source.classes))


def about(net: Backbone) -> dict[str, Any]:
    """What a figure calls a net."""
    options = net.options
    if not isinstance(options, NetOptions):
        return {"name": options.name, "kind": "external", "depth": None}
    kind = "plain" if options.shortcut == "none" else "residual"
    return {"name": options.name.removeprefix("cifar_"), "kind": kind, "depth": options.depth}


def table(record: dict[str, Any]) -> str:
    """The gist for a terminal: of each net the gradient at the first and the last unit, and the middle response."""
    lines = [f"{'net':<12}{'state':<20}{'first unit':>12}{'last unit':>12}{'first / last':>14}"]
    for row in record["gradients"]:
        first, last = row["units"][0]["output"], row["units"][-1]["output"]
        lines.append(f"{row['name']:<12}{row['state']:<20}{first:>12.3g}{last:>12.3g}{first / last:>14.3g}")
    for row in record["scaling"]:
        first, last, state = row["units"][0]["output"], row["units"][-1]["output"], f"λ = {row['scale']:g}"
        alone = f"   shortcuts alone {row['measured'][0]:.3g}"
        lines.append(f"{row['name']:<12}{state:<20}{first:>12.3g}{last:>12.3g}{first / last:>14.3g}{alone}")
    for row in record["responses"]:
        deviations = [layer["std"] for layer in row["layers"]]
        lines.append(
            f"{row['name']:<12}layer responses: median {statistics.median(deviations):.3g}, of {len(deviations)}"
        )
    return "\n".join([*lines, *record["without_responses"].values()])
