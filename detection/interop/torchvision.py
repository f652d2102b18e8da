"""A detector as a file that torchvision's own constructors load strictly, and what to tell them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models.detection as families
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from backbone.interop.common import saved, to_json
from backbone.options import NetOptions
from detection.detections import Detections, paste
from detection.interop.source import Answer, Files, Source
from detection.nets.retinanet import octaves
from detection.options import TORCHVISION_BETA, AnyDetector, DetectorOptions, RetinaOptions

NEVER = -1e4  # a logit whose sigmoid is zero
DEFAULT_ANCHORS = (
    RetinaOptions.model_fields["anchor_sizes"].default,
    RetinaOptions.model_fields["anchor_ratios"].default,
)


def obstacle(source: Source) -> str:
    """Why torchvision cannot have it, and what to do; empty: it can."""
    net, options = source.loaded.detector.backbone.body.options, source.loaded.detector.options
    if not isinstance(net, NetOptions):
        return f"its detectors have none of {net.library}'s nets by their names"
    odd = [
        (net.name != "resnet50", f"its constructors have ResNet-50 alone, and this is {net.name}"),
        (net.shortcut != "B", f"its ResNets have shortcuts of kind B, and this net {net.shortcut}"),
        (net.stride_in_1x1, "its bottlenecks have stride in the 3x3 only, and it would load these without a word"),
        (net.preact, "its units have no pre-activation"),
        (net.shortcut_scale != 1 or net.residual_scale != 1, "its units scale neither branch"),
        (net.width != 1, f"it has no width {net.width:g}"),
        (net.norm not in ("batch", "sync", "frozen"), f"its ResNets have batch norm, and this net {net.norm}"),
        (options.channels != 256, f"its pyramids have 256 channels, and detector.channels is {options.channels}"),
    ]
    odd += _odd_retina(options) if isinstance(options, RetinaOptions) else _odd_regions(options)
    return next((reason for is_odd, reason in odd if is_odd), "")


def _odd_regions(options: DetectorOptions) -> list[tuple[bool, str]]:
    rpn, roi = options.rpn, options.roi
    return [
        (options.kind == "c4", "it has no detector on C4; train one of kind fpn"),
        (options.context, "its heads have no context of the whole image; train without detector.context"),
        (options.hidden != 1024, f"its box heads have 1024 features, and detector.hidden is {options.hidden}"),
        (rpn.channels not in (0, 256), f"its RPN has 256 channels, and detector.rpn.channels is {rpn.channels}"),
        (rpn.min_size != 0.001, f"it drops no small proposals, and detector.rpn.min_size is {rpn.min_size:g}"),
        (roi.size not in (0, 7), f"its regions have 7x7 cells, and detector.roi.size is {roi.size}"),
        (
            roi.canonical != 224,
            f"it pools boxes of 224 pixels from stride 16, of detector.roi.canonical {roi.canonical:g} none",
        ),
    ]


def _odd_retina(options: RetinaOptions) -> list[tuple[bool, str]]:
    kind = options.p6, options.head_norm
    both = "of P5 and no norms in the heads (v1), or of C5 and group norms (v2)"
    anchors = (options.anchor_sizes, options.anchor_ratios, options.octaves)
    return [
        (
            kind not in (("P5", "none"), ("C5", "group")),
            f"its RetinaNets have P6 {both}; here it is {' and '.join(kind)}",
        ),
        (
            kind == ("C5", "group") and anchors != (*DEFAULT_ANCHORS, 3),
            "its retinanet_resnet50_fpn_v2 takes no other anchors",
        ),
    ]


def write(source: Source) -> Files:
    """`model.pth`, all of it, and `detector.json`, in the words of the constructors."""
    return {"model.pth": saved(_state(source)), "detector.json": to_json(arguments(source))}


def _state(source: Source) -> dict[str, Tensor]:
    """The detector's tensors, of a net that reads RGB, with the counters that the constructors' batch norms have."""
    found = {name: t.detach().cpu().contiguous() for name, t in source.loaded.detector.state_dict().items()}
    for name in [name for name in found if name.endswith("running_var")]:
        found.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    if source.loaded.inputs.channel_order == "BGR":
        first = "backbone.body.conv1.weight"
        found[first] = found[first].flip(1).contiguous()
    if isinstance(source.loaded.detector.options, RetinaOptions):
        # Trained as torchvision trains it, class 0 is nobody's; torchvision would report it all the same.
        for name, value in (("weight", 0.0), ("bias", NEVER)):
            key = f"head.classification_head.cls_logits.{name}"
            found[key] = found[key].clone()
            found[key].unflatten(0, (-1, len(source.loaded.categories.names) + 1))[:, 0] = value
    return found


def arguments(source: Source) -> dict[str, Any]:
    """What the constructor is told, but for the anchors, which JSON can only describe."""
    loaded, options = source.loaded, source.loaded.detector.options
    given: dict[str, Any] = {
        "num_classes": len(loaded.categories.names) + 1,
        "min_size": loaded.inputs.size,
        "max_size": loaded.longer_side,
        "image_mean": list(loaded.inputs.mean),
        "image_std": list(loaded.inputs.std),
    }
    if isinstance(options, RetinaOptions):
        return given | {
            "score_thresh": options.score,
            "nms_thresh": options.nms,
            "detections_per_img": options.detections,
            "topk_candidates": options.pre_nms,
            "fg_iou_thresh": options.fg_iou,
            "bg_iou_thresh": options.bg_iou,
        }
    rpn, roi = options.rpn, options.roi
    return given | {
        "rpn_pre_nms_top_n_train": rpn.pre_nms_train,
        "rpn_pre_nms_top_n_test": rpn.pre_nms_test,
        "rpn_post_nms_top_n_train": rpn.post_nms_train,
        "rpn_post_nms_top_n_test": rpn.post_nms_test,
        "rpn_nms_thresh": rpn.nms,
        "rpn_fg_iou_thresh": rpn.fg_iou,
        "rpn_bg_iou_thresh": rpn.bg_iou,
        "rpn_batch_size_per_image": rpn.batch,
        "rpn_positive_fraction": rpn.fg_fraction,
        "box_score_thresh": roi.score,
        "box_nms_thresh": roi.nms,
        "box_detections_per_img": roi.detections,
        "box_fg_iou_thresh": roi.fg_iou,
        "box_bg_iou_thresh": roi.bg_iou,
        "box_batch_size_per_image": roi.batch,
        "box_positive_fraction": roi.fg_fraction,
    }


def _constructor(options: AnyDetector) -> str:
    """The function of torchvision's, by name."""
    if isinstance(options, RetinaOptions):
        return "retinanet_resnet50_fpn" + ("_v2" if options.p6 == "C5" else "")
    return f"{'maskrcnn' if options.masks else 'fasterrcnn'}_resnet50_fpn"


def _anchors(options: AnyDetector) -> tuple[str, tuple[tuple[float, ...], ...]]:
    """The constructor's argument of anchors and the sizes of each level; no name where they are its own."""
    if isinstance(options, RetinaOptions):
        own = (options.anchor_sizes, options.anchor_ratios, options.octaves) == (*DEFAULT_ANCHORS, 3)
        return "" if own else "anchor_generator", tuple(octaves(s, options.octaves) for s in options.anchor_sizes)
    assert isinstance(options, DetectorOptions)  # `export` refuses others
    own = (options.anchor_sizes, options.anchor_ratios) == DEFAULT_ANCHORS
    return "" if own else "rpn_anchor_generator", tuple((size,) for size in options.anchor_sizes)


def snippet(source: Source) -> str:
    """How to load it."""
    options = source.loaded.detector.options
    make, (name, sizes) = _constructor(options), _anchors(options)
    lines = [
        "import json",
        "",
        "import torch",
        f"from torchvision.models.detection import {make}",
        *(["from torchvision.models.detection.anchor_utils import AnchorGenerator"] if name else []),
        "",
        f'given = json.load(open("{source.place}/detector.json"))',
    ]
    if name:
        ratios = f"({tuple(options.anchor_ratios)!r},) * {len(sizes)}"
        lines.append(f'given["{name}"] = AnchorGenerator({sizes!r}, {ratios})')
    lines += [
        f"model = {make}(weights=None, weights_backbone=None, **given)",
        f'model.load_state_dict(torch.load("{source.place}/model.pth", weights_only=True))',
        "model.eval()",
        "found = model([torch.zeros(3, 480, 640)])  # RGB of 0 to 1: it resizes and normalises itself",
    ]
    return "\n".join(lines)


def answers(folder: Path, source: Source) -> Answer:
    """What torchvision's detector finds, built and loaded from the folder."""
    options = source.loaded.detector.options
    given = json.loads((folder / "detector.json").read_text())
    name, sizes = _anchors(options)
    if name:
        given[name] = AnchorGenerator(sizes, (options.anchor_ratios,) * len(sizes))
    model = getattr(families, _constructor(options))(weights=None, weights_backbone=None, **given).eval()
    model.load_state_dict(torch.load(io.BytesIO((folder / "model.pth").read_bytes()), weights_only=True))
    for place, norm in source.loaded.detector.named_modules():
        if isinstance(norm, FrozenBatchNorm2d):  # the same numbers, but rounded otherwise
            frozen = FrozenBatchNorm2d(norm.weight.numel(), model.get_submodule(place).eps)
            frozen.load_state_dict(model.get_submodule(place).state_dict())
            model.set_submodule(place, frozen)

    @torch.no_grad()
    def answer(image: np.ndarray) -> Detections:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        batch, _ = model.transform([pixels])
        if isinstance(options, RetinaOptions):
            (found,) = model([pixels])
        else:  # without the transform's last step, which pastes masks into the image
            maps = model.backbone(batch.tensors)
            proposals, _ = model.rpn(batch, maps)
            ((found,), _) = model.roi_heads(maps, proposals, batch.image_sizes)
        boxes, ids = found["boxes"].numpy(), np.zeros(len(found["boxes"]), np.int64)
        masks = paste(found["masks"], boxes, *image.shape[:2]) if "masks" in found else None
        return Detections(np.zeros(1, np.int64), ids, found["labels"].numpy(), boxes, found["scores"].numpy(), masks)

    return answer


def sizes(source: Source) -> tuple[tuple[int, int], ...]:
    """Two that neither side has to resize, which they do differently."""
    side, most = source.loaded.inputs.size, source.loaded.longer_side
    return (side, min(most, side * 5 // 4)), (min(most, side * 4 // 3), side)


def notes(source: Source) -> list[str]:
    """What is to be known beside the snippet."""
    said = [
        "torchvision resizes without averaging, raybone's detectors average where an image shrinks: detections differ "
        "slightly unless images come in the size of `min_size`.",
        "The constructor's batch norms train; keep them in eval mode, or freeze them, if you go on training.",
    ]
    options = source.loaded.detector.options
    if isinstance(options, DetectorOptions):
        train = [
            ("detector.rpn.beta", options.rpn.beta != TORCHVISION_BETA),
            ("detector.roi.beta", options.roi.beta != TORCHVISION_BETA),
            ("detector.rpn.inside_only", options.rpn.inside_only),
        ]
    else:
        train = [("detector.box_loss", options.box_loss != ("giou" if options.p6 == "C5" else "l1"))]
    lost = [name for name, differs in train if differs]
    if lost:
        said.append(f"Left out, since torchvision trains otherwise: {', '.join(lost)}.")
    if source.loaded.inputs.channel_order == "BGR":
        said.append("The net reads BGR, torchvision feeds RGB: the channels of the first kernels were reversed.")
    return said
