"""An artifact comes back as it was, in raybone and in timm, and nothing that was changed about it gets past `load`."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import backbone
from backbone import artifact
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import Backbone, build
from backbone.noise import noise
from backbone.options import NetOptions

NETS = [
    NetOptions(depth=18),
    NetOptions(depth=50, stride_in_1x1=True, width=0.25),
    NetOptions(depth=18, shortcut="none", width=0.25),
    NetOptions(net="cifar_resnet", depth=20, shortcut="A", bn_group=8),
    NetOptions(net="vgg", depth=11, norm="batch", width=0.05),
    NetOptions(depth=18, norm="frozen", width=0.25),
]


def trained(options: NetOptions, num_classes: int = 5) -> Backbone:
    """A net whose batch statistics are not 0 and 1, else half of it would not be tested."""
    torch.manual_seed(3)
    net = build(options, num_classes)
    for module in net.modules():
        for name, low, high in (
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 2),
            ("weight", 0.3, 1),
            ("bias", -0.2, 0.2),
        ):
            value = getattr(module, name, None)
            if hasattr(module, "running_mean") and value is not None:
                torch.nn.init.uniform_(value, low, high)
    return net


def write(folder: Path, options: NetOptions, inputs: InputConvention | None = None) -> Backbone:
    net = trained(options)
    artifact.save(folder, net, inputs or InputConvention(size=64), tuple("abcde"), {"metrics": {"val_error": 10.0}})
    return net


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("options", NETS, ids=lambda options: options.name)
def test_round_trip(tmp_path: Path, options: NetOptions) -> None:
    net = write(tmp_path / "a", options).eval()
    again, inputs, about = backbone.load(tmp_path / "a")
    x = inputs.normalize(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        assert torch.equal(net.classify(x), again.classify(x))
        for name, stage_map in net(x).items():
            assert torch.equal(stage_map, again(x)[name])
            assert list(stage_map.shape[1:2]) == [about["stages"][name]["channels"]]
    assert about["classes"] == list("abcde")
    assert about["provenance"]["versions"]["torch"] == torch.__version__


def test_a_remote_artifact_is_loaded_by_its_url(tmp_path: Path) -> None:
    artifact.save("memory://models/a", trained(NETS[3]), InputConvention(size=32), tuple("abcde"), {})
    net, inputs, _ = backbone.load("memory://models/a")
    assert net.options.depth == 20
    assert inputs.size == 32


def test_mean_image_travels(tmp_path: Path) -> None:
    inputs = InputConvention(size=32).with_mean_image(torch.rand(3, 32, 32))
    write(tmp_path / "a", NETS[3], inputs)
    loaded = backbone.load(tmp_path / "a")[1]
    assert inputs.mean_image is not None
    assert loaded.mean_image is not None
    assert torch.equal(loaded.mean_image, inputs.mean_image)
    assert loaded.mean == pytest.approx(inputs.mean)


@pytest.mark.parametrize("options", [NetOptions(depth=18), NetOptions(depth=50)], ids=lambda o: o.name)
def test_timm_reads_the_directory(tmp_path: Path, options: NetOptions) -> None:
    import timm

    net = write(tmp_path, options, InputConvention(size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), net.classify(x), rtol=1e-5, atol=1e-5)
    config = timm.data.resolve_data_config(model=theirs)
    found = [list(config[key]) for key in ("mean", "std", "input_size")]
    assert found == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [3, 96, 96]]
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7, in_chans=1).eval()
    assert other(x[:, :1]).shape == (2, 7)


def test_nets_timm_cannot_express_do_not_claim_its_names(tmp_path: Path) -> None:
    """timm would load stride-in-1x1 weights without a word, and compute something else."""
    for options in (
        NetOptions(depth=50, stride_in_1x1=True),
        NetOptions(depth=34, shortcut="A"),
        NetOptions(width=0.5),
    ):
        assert artifact.timm_name(options) is None
    write(tmp_path, NetOptions(depth=50, stride_in_1x1=True, width=0.1))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "raybone_resnet50"


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path, NETS[0])
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model.safetensors: SHA-256"):
        backbone.load(tmp_path)
    file.write_bytes(data[:-1000])
    with pytest.raises(UserError, match="SHA-256"):
        backbone.load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="incomplete artifact"):
        backbone.load(tmp_path)


def exchange(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other weights and make the hash agree: only the probe or the key check is left to notice."""
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda c: c["raybone"].update(weights_sha256=digest))


def test_exchanged_weights_with_a_matching_hash_fail_the_probe(tmp_path: Path) -> None:
    write(tmp_path, NETS[0])
    tensors = load_file(tmp_path / "model.safetensors")
    swapped = {**tensors, "conv1.weight": tensors["conv1.weight"].flip(1).contiguous()}  # RGB weights as BGR
    exchange(tmp_path, swapped)
    with pytest.raises(UserError, match="does not answer its probe"):
        backbone.load(tmp_path)
    exchange(tmp_path, tensors)
    backbone.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: c["raybone"]["net"].update(stride_in_1x1=True), id="stride"),
        pytest.param(lambda c: c["raybone"].update(channel_order="BGR"), id="channels"),
        pytest.param(lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), id="mean"),
        pytest.param(lambda c: c["pretrained_cfg"].update(std=[1, 1, 1]), id="std"),
        pytest.param(lambda c: c["raybone"]["net"].update(shortcut_scale=0.98), id="lambda"),
    ],
)
def test_a_wrong_description_fails_the_probe(tmp_path: Path, change: Callable[[dict], None]) -> None:
    write(tmp_path, NetOptions(depth=50, width=0.25))
    edit(tmp_path, change)
    with pytest.raises(UserError, match="does not answer its probe"):
        backbone.load(tmp_path)


def test_where_zeros_lie_is_recorded_and_probed(tmp_path: Path) -> None:
    write(tmp_path, NetOptions(net="cifar_resnet", depth=20, shortcut="A", shortcut_pad="both"))
    assert backbone.load(tmp_path)[0].options.shortcut_pad == "both"
    edit(tmp_path, lambda c: c["raybone"]["net"].update(shortcut_pad="end"))
    with pytest.raises(UserError, match=r"does not answer its probe: .* of C3 .*look at .*shortcut_pad"):
        backbone.load(tmp_path)
    edit(tmp_path, lambda c: c["raybone"]["net"].pop("shortcut_pad"))  # as older artifacts are, which end so
    with pytest.raises(UserError, match="does not answer its probe"):
        backbone.load(tmp_path)


def test_keys_must_all_be_accounted_for(tmp_path: Path) -> None:
    write(tmp_path, NETS[0])
    tensors = load_file(tmp_path / "model.safetensors")
    for other, complaint in (
        ({k: v for k, v in tensors.items() if k != "fc.bias"}, r"missing \['fc.bias'\]"),
        ({**tensors, "module.fc.bias": tensors["fc.bias"].clone()}, r"unknown \['module.fc.bias'\]"),
        ({**tensors, "fc.bias": torch.zeros(7)}, r"another shape \['fc.bias'\]"),
    ):
        exchange(tmp_path, other)
        with pytest.raises(UserError, match=complaint):
            backbone.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.pop("raybone"), "not a raybone backbone artifact"),
        (lambda c: c["raybone"].update(format=99), "format 99"),
        (lambda c: c["raybone"]["net"].update(depth=19), "depth 19"),
        (lambda c: c["raybone"]["stages"]["C5"].update(stride=16), "stages"),
        (lambda c: c["raybone"]["net"].update(colour="red"), "colour"),
    ],
)
def test_broken_configs_are_refused(tmp_path: Path, change: Callable[[dict], None], complaint: str) -> None:
    write(tmp_path, NETS[0])
    edit(tmp_path, change)
    with pytest.raises(UserError, match=complaint):
        backbone.load(tmp_path)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        backbone.load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        backbone.load(tmp_path)


def test_the_probe_leaves_the_net_alone() -> None:
    net = trained(NETS[0]).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first, second = (artifact.probe(net, InputConvention()) for _ in range(2))
    assert first == second
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_the_last_digit_of_scores_that_are_all_alike_is_no_difference() -> None:
    """Deviations of nearly equal scores are smaller than what fp32 leaves of the scores themselves."""
    net = trained(NetOptions(depth=18, width=0.25), num_classes=1).eval()
    with torch.no_grad():
        net.fc.weight.mul_(1e-6)
        net.fc.bias.fill_(5.0)
    expected = artifact.probe(net, InputConvention())
    assert expected["logits"]["std"] < 1e-4
    assert artifact.answers_otherwise(net, InputConvention(), expected) is None
    close = noise(net, InputConvention(), artifact.probe_images())["logits"]
    expected["logits"]["mean"] += 2 * close  # as another processor may round
    assert artifact.answers_otherwise(net, InputConvention(), expected) is None
    expected["logits"]["mean"] += 1e-3
    said, wanted = artifact.answers_otherwise(net, InputConvention(), expected) or ("", "")
    assert said.startswith("mean of logits is 5")
    assert float(wanted) == pytest.approx(expected["logits"]["mean"], abs=1e-5)
    del expected["C3"]
    assert artifact.answers_otherwise(net, InputConvention(), expected)[1] == "nan"
