"""A detectron2 export has the published names and shapes, and in its own blocks, by its own config, our maps."""

import pickle

import pytest
import torch
import yaml

from backbone.interop import detectron2 as ours
from backbone.interop.common import Source
from backbone.interop.export import export
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, INPUTS, assert_equal, maps_of, photos, source_of
from tests.backbone.interop.published import Detectron2

NETS = [
    (NetOptions(depth=18), INPUTS),
    (NetOptions(depth=34), BGR),
    (NetOptions(depth=50), INPUTS),
    (NetOptions(depth=50, stride_in_1x1=True), BGR),
    (NetOptions(depth=50, width=0.25), INPUTS),
    (NetOptions(depth=101, stride_in_1x1=True), INPUTS),
    (NetOptions(depth=152), BGR),
]


def theirs(source: Source) -> Detectron2:
    """Their net by our config with our file; every key and every shape must fit."""
    files = ours.write(source)
    cfg, weights = yaml.safe_load(files["backbone.yaml"]), pickle.loads(files["model.pkl"])
    assert set(weights) == {"model", "__author__", "matching_heuristics"}
    assert cfg["MODEL"]["WEIGHTS"] == "exported/model.pkl"
    net = Detectron2(cfg).eval()
    published = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    assert {name: array.shape for name, array in weights["model"].items()} == published
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights["model"].items()})
    return net


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "inputs"), NETS, ids=lambda v: f"{v.depth}-{v.stride_in_1x1}" if hasattr(v, "depth") else ""
)
def test_keys_shapes_and_maps(options: NetOptions, inputs) -> None:
    source = source_of(options, inputs)
    pixels, images = photos()
    assert_equal(theirs(source)(pixels), maps_of(source, images))


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["stride", "order", "mean", "range"])
def test_another_config_gives_other_maps(wrong: str) -> None:
    """Else the test above would not tell."""
    source = source_of(NetOptions(depth=50, stride_in_1x1=True, width=0.25), BGR)
    net = theirs(source)
    pixels, images = photos()
    model = net.cfg["MODEL"]
    if wrong == "stride":
        model["RESNETS"]["STRIDE_IN_1X1"] = False
        other = Detectron2(net.cfg).eval()
        other.load_state_dict(net.state_dict())
        net = other
    elif wrong == "order":
        net.cfg["INPUT"]["FORMAT"] = "RGB"
    elif wrong == "mean":
        model["PIXEL_MEAN"] = model["PIXEL_MEAN"][::-1]
    else:
        model["PIXEL_STD"] = [v / 255 for v in model["PIXEL_STD"]]
    with pytest.raises(AssertionError):
        assert_equal(net(pixels), maps_of(source, images))


@pytest.mark.parametrize(("depth", "said"), [(18, True), (34, True), (50, False)])
def test_nets_of_basic_blocks_go_into_fpn_alone(depth: int, said: bool, artifact_of, tmp_path) -> None:
    artifact = artifact_of(NetOptions(depth=depth) if depth < 50 else NetOptions(depth=50, width=0.25))
    done = export(str(artifact), "detectron2", str(tmp_path / "exported"))
    assert any(note.startswith("FPN alone") for note in done.notes) == said
    assert ("FPN alone" in (tmp_path / "exported" / "README.md").read_text()) == said


def test_the_advice_on_norms() -> None:
    model = yaml.safe_load(ours.write(source_of(NetOptions(depth=18)))["backbone.yaml"])["MODEL"]
    assert (model["RESNETS"]["NORM"], model["BACKBONE"]["FREEZE_AT"]) == ("FrozenBN", 2)
