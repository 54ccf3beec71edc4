"""A run's student as files, run as somebody without anykd runs them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from anykd.data import DataConfig, open_data
from anykd.errors import AnykdError, ModelError
from anykd.experiment.export import export_run
from anykd.export import Exported, latency, to_onnx
from anykd.export.program import Program
from anykd.export.signature import Signature
from tests.experiment.runs import CNN, DATA, VIT, anykd, distill_cnn, short, train_vit

SWIN = (
    "student.options={embed_dim=16,depths=[1,1,2,1],num_heads=[1,2,4,8],window_size=4,patch_size=2}"
)
FAMILIES = {
    "cnn": ("resnet18", CNN),
    "vit": ("vit_tiny_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "mlp": ("resmlp_12_224", "seed=0"),
}
ALL = ("timm", "torch", "onnx")
WRITTEN = {"onnx": "model.onnx", "torch": "model.pt2", "timm": "timm"}


@pytest.fixture(autouse=True)
def _few_timings(monkeypatch):
    monkeypatch.setattr(latency, "_ROUNDS", (1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder) -> Any:
    """Runs of each family, trained when they are first asked for."""

    def run(family: str) -> Path:
        out = folder / family
        if not out.is_dir():
            name, option = FAMILIES[family]
            flags = short(option)
            done = anykd("train", "--model", name, "--data", DATA, "--out", out, *flags)
            assert done.code == 0, done.err
        return out

    return run


@pytest.fixture(scope="module")
def exported(runs) -> Any:
    """What the runs of each family are exported to, once, in all formats."""
    found: dict[str, tuple[Exported, ...]] = {}

    def export(family: str) -> tuple[Exported, ...]:
        if family not in found:
            found[family] = export_run(runs(family), ALL, out=runs(family).with_suffix(".export"))
        return found[family]

    return export


@pytest.fixture(scope="module")
def distilled(folder) -> Path:
    return distill_cnn(folder / "distilled", train_vit(folder / "teacher"))


def files(path: Path) -> dict[str, bytes]:
    """All files of a run but those that exports make."""
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file): file.read_bytes() for file in found if path / "export" not in file.parents}


def pictures() -> list[Image.Image]:
    held_out = open_data(DataConfig(source=DATA)).val
    return [held_out[number].image for number in range(len(held_out))]


def timm_transform(model: Any) -> Any:
    return create_transform(**resolve_data_config(model=model), is_training=False)


def by_timm(folder: Path) -> tuple[Tensor, Tensor]:
    """Inputs and scores of timm's model with timm's transform."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm_transform(model)
    images = torch.stack([transform(image) for image in pictures()])
    with torch.no_grad():
        return images, model(images)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_to_every_format_and_back(family, runs, exported):
    run = runs(family)
    before = files(run)
    done = exported(family)
    folder = done[0].path.parent
    assert [one.format for one in done] == ["timm", "torch", "onnx"]
    for one in done:
        assert one.parity.agreement == 100
        assert one.parity.num_images == 16
        assert one.parity.exported_top1 == one.parity.top1
        assert [found.batch_size for found in one.latency] == [1, 32]
        assert json.loads(one.report.read_text()) == json.loads(json.dumps(one.to_dict()))
    images, expected = by_timm(run / "student")
    torch.testing.assert_close(by_timm(folder / "timm")[1], expected)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    module = torch.export.load(folder / "model.pt2").module()
    torch.testing.assert_close(module(images[:5]), expected[:5], rtol=1e-4, atol=1e-5)
    assert files(run) == before


def test_somebody_without_anykd_uses_all_files(exported):
    folder = exported("swin")[0].path.parent
    script = """
import sys
sys.meta_path.insert(0, type("No", (), {"find_spec": staticmethod(lambda name, *_: (_ for _ in
    ()).throw(ImportError(name)) if name.split(".")[0] == "anykd" else None)}))
import timm, torch, onnxruntime
model = timm.create_model("local-dir:timm", pretrained=True).eval()
images = torch.rand(3, 3, 32, 32)
with torch.no_grad():
    expected = model(images)
    (found,) = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.load("model.pt2").module()(images), expected)
assert "anykd" not in sys.modules
print("used")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "used", done.stderr


def test_an_onnx_export_keeps_nothing_in_the_home_folder(runs, tmp_path):
    """Where onnxruntime reports its use over the network it keeps a database there."""
    ours = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME")
    env = {key: value for key, value in os.environ.items() if key not in ours}
    script = f"import anykd.experiment.export as e; e.export_run({str(runs('cnn'))!r}, out='out')"
    (tmp_path / "home").mkdir()
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=env | {"HOME": str(tmp_path / "home")},
        check=True,
    )
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert list((tmp_path / "home").rglob("*")) == []


def test_the_config_tells_of_no_weights_that_the_student_lacks(runs, tmp_path):
    export_run(runs("cnn"), ["timm"], out=tmp_path)
    card = ModelCard.load(tmp_path / "timm" / "README.md")
    assert card.data.to_dict()["license"] == "unknown"
    names = ("license", "tag", "origin_url", "paper_ids", "hf_hub_id", "url")
    offered: Any = timm.create_model("resnet18").pretrained_cfg
    config = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    loaded: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    for name in names:
        assert offered[name]
        assert name not in config
        assert not loaded.pretrained_cfg.get(name)


def test_with_preprocessing_it_takes_pixels(runs, tmp_path):
    run = runs("cnn")
    done = export_run(run, ["onnx", "torch"], out=tmp_path, with_preprocessing=True)
    pixels = np.stack([np.asarray(image.resize((32, 32))) for image in pictures()])
    assert pixels.dtype == np.uint8
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape[1:] == [32, 32, 3]
    (found,) = session.run(None, {"images": pixels})
    _, expected = by_timm(run / "student")
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    found = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one in done:
        told = json.loads(one.report.read_text())["input"]
        assert (told["dtype"], told["layout"], told["normalisation"]) == ("uint8", "NHWC", "inside")


@pytest.fixture(scope="module")
def deployed(distilled) -> tuple[Path, list[Tensor]]:
    """A student in all formats by the command line, and what its integers were calibrated with."""
    calibrated_with: list[Tensor] = []
    quantise = to_onnx.quantise

    def spy(source: Path, calibration: list[Tensor], path: Path) -> None:
        calibrated_with.extend(calibration)
        quantise(source, calibration, path)

    formats = [part for name in ALL for part in ("--format", name)]
    with mock.patch("anykd.export.export.quantise", spy):
        done = anykd("export", distilled, *formats, "--int8")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["timm", "torch", "onnx", "onnx-int8"]
    assert len(lines) == 6
    return distilled / "export", calibrated_with


def test_files_say_what_they_take_and_give(deployed):
    folder, _ = deployed
    for file in ("model.onnx", "model.pt2"):
        told = json.loads((folder / f"{file}.json").read_text())
        assert told["input"]["shape"] == ["batch", 3, 32, 32]
        assert told["input"]["mean"] == [0.485, 0.456, 0.406]
        assert told["output"]["classes"] == [f"pattern {number}" for number in range(4)]
        assert told["origin"]["method"] == "kd"
        assert told["origin"]["teachers"] == ["vit_tiny_patch16_224"]
        assert told["sha256"] == hashlib.sha256((folder / file).read_bytes()).hexdigest()
    for file in ("model.onnx", "model_int8.onnx"):
        props = {p.key: json.loads(p.value) for p in onnx.load(folder / file).metadata_props}
        assert props["anykd.input"] == told["input"]
        assert props["anykd.output"] == told["output"]
    extra = {"anykd.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    assert json.loads(extra["anykd.json"])["output"] == told["output"]


def test_the_batch_dimension_has_its_name(deployed):
    folder, _ = deployed
    for file in ("model.onnx", "model_int8.onnx"):
        graph = onnx.load(folder / file).graph
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
        named = {
            dim.dim_param for value in graph.value_info for dim in value.type.tensor_type.shape.dim
        }
        assert named <= {"", "batch"}


def test_integers_are_calibrated_on_training_images_and_their_cost_is_told(deployed):
    folder, calibrated_with = deployed
    train = open_data(DataConfig(source=DATA)).train
    given = torch.cat(calibrated_with)
    assert len(given) == len(train)
    transform = timm_transform(timm.create_model(f"local-dir:{folder / 'timm'}"))
    torch.testing.assert_close(given[-1], transform(train[len(train) - 1].image))
    model = onnx.load(folder / "model_int8.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in model.graph.initializer}
    report = json.loads((folder / "model_int8.onnx.json").read_text())
    assert report["parity"]["tolerated"] is None
    assert report["parity"]["top1"] is not None
    assert report["parity"]["exported_top1"] is not None
    assert report["bytes"] < json.loads((folder / "model.onnx.json").read_text())["bytes"]


def test_the_card_of_a_run_is_one_that_the_hub_reads(deployed, distilled):
    folder, _ = deployed
    card = ModelCard.load(folder / "timm" / "README.md")
    assert card.data.to_dict()["library_name"] == "timm"
    assert "`synthetic:4x16`" in card.text
    assert "vit_tiny_patch16_224" in card.text
    assert str(distilled.parent) not in card.text  # nobody else has this machine's folders
    recipe = (folder / "timm" / "recipe.toml").read_bytes()
    assert recipe == (distilled / "recipe.toml").read_bytes()


def wrong_weights(monkeypatch) -> None:
    start = Program.__init__

    def init(self: Program, *given: Any) -> None:
        start(self, *given)
        next(self.model.parameters()).mul_(1.05)

    monkeypatch.setattr(Program, "__init__", init)


def wrong_preprocessing(monkeypatch) -> None:
    told = Signature.to_dict

    def to_dict(self: Signature) -> dict[str, Any]:
        found = told(self)
        found["input"]["mean"] = [0.5, 0.5, 0.5]
        return found

    monkeypatch.setattr(Signature, "to_dict", to_dict)


@pytest.mark.parametrize(
    ("break_it", "format"), [(wrong_weights, "onnx"), (wrong_preprocessing, "torch")]
)
def test_a_file_that_is_not_the_student_is_not_kept(runs, monkeypatch, break_it, format):
    run = runs("cnn")
    break_it(monkeypatch)
    done = anykd("export", run, "--format", format)
    assert done.code == 2
    assert "does not do what the student does on 16 held-out images" in done.err
    assert not (run / "export").exists()


def test_wrong_weights_of_the_timm_folder_are_found(runs, tmp_path, monkeypatch):
    copy = shutil.copytree

    def copied(source: Path, folder: Path) -> None:
        copy(source, folder)
        other = timm.create_model(f"local-dir:{source}", pretrained=False)
        timm.models.save_for_hf(other, str(folder), safe_serialization=True)

    monkeypatch.setattr(shutil, "copytree", copied)
    with pytest.raises(ModelError, match="the folder for timm does not do"):
        export_run(runs("cnn"), ["timm"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_the_one_before(runs, tmp_path, monkeypatch):
    export_run(runs("cnn"), ["torch"], out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrong_weights(monkeypatch)
    with pytest.raises(ModelError):
        export_run(runs("cnn"), ["torch"], out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_export_replaces_the_one_before_but_no_other_folder(runs, tmp_path):
    for _ in range(2):
        export_run(runs("cnn"), ["timm"], out=tmp_path)
    other = tmp_path / "other" / "timm"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(AnykdError, match="is no exported student"):
        export_run(runs("cnn"), ["timm"], out=other.parent)
    assert (other / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "formats"),
    [
        (("torchvision:resnet18", "seed=0"), ("timm", "onnx")),
        (
            ("resnet18", 'student.options={layers=[1,1,1,1],channels=[8,16,24,32],stem="small"}'),
            ("timm",),
        ),
    ],
    ids=["torchvision", "small stem"],
)
def test_students_that_timm_does_not_make_are_exported_too(model, formats, tmp_path):
    name, option = model
    run = tmp_path / "run"
    done = anykd("train", "--model", name, "--data", DATA, "--out", run, *short(option))
    assert done.code == 0, done.err
    found = export_run(run, formats)
    assert {one.parity.agreement for one in found} == {100}
    assert "create_staged" in (run / "export" / "timm" / "README.md").read_text()


def test_hostile_class_names_reach_every_file_as_they_are(tmp_path, write_images):
    names = ["<script>alert(1)<!-- -->", 'quo"ted: [yes', "two\nlines", "`code` | bar"]
    names = [name.replace("/", "") for name in names]
    for part, count in (("train", 16), ("val", 4)):
        write_images(f"images/{part}", **dict.fromkeys(names, count))
    run = tmp_path / "run"
    done = anykd(
        *("train", "--model", "resnet18", "--data", tmp_path / "images", "--out", run), *short(CNN)
    )
    assert done.code == 0, done.err
    export_run(run, ["torch", "timm"])
    for file in ("model.pt2.json", "timm.json"):
        told = json.loads((run / "export" / file).read_text())
        assert told["output"]["classes"] == sorted(names)
    card = ModelCard.load(run / "export" / "timm" / "README.md")
    assert card.data.to_dict()["license"] == "unknown"
    model: Any = timm.create_model(f"local-dir:{run / 'export' / 'timm'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == sorted(names)


def test_images_elsewhere_are_compared_on(runs, tmp_path, write_images):
    for part in ("train", "val"):
        write_images(f"images/{part}", **{f"pattern {number}": 2 for number in range(4)})
    data = tmp_path / "images"
    (done,) = export_run(runs("cnn"), ["timm"], out=tmp_path / "out", data=str(data), num_images=5)
    assert done.parity.num_images == 5
    assert done.parity.top1 is not None


def test_labels_of_other_classes_are_no_accuracy(runs, tmp_path, write_images):
    for part in ("train", "val"):
        write_images(f"images/{part}", cat=2, dog=2)
    data = tmp_path / "images"
    (done,) = export_run(runs("cnn"), ["timm"], out=tmp_path / "out", data=str(data))
    assert (done.parity.top1, done.parity.agreement) == (None, 100)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--int8", "--format", "timm"], "--int8 is for ONNX files"),
        (["--push", "me/it"], "--push uploads the folder for timm"),
        (["--push", "no such name", "--format", "timm"], "is no name on the hub"),
        (["--push", "me/it", "--format", "timm"], "needs a token"),
        (["--data", "nowhere/at/all"], "there are no images to compare on"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(runs, monkeypatch, flags, said):
    monkeypatch.setattr("anykd.export.push.get_token", lambda: None)
    run = runs("cnn")
    before = files(run)
    done = anykd("export", run, *flags)
    assert done.code == 2
    assert said in done.err
    assert not (run / "export").exists()
    assert files(run) == before


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    done = anykd("export", tmp_path)
    assert done.code == 2
    assert "is no finished run" in done.err


def test_a_missing_package_is_named_before_any_work(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = anykd("export", runs("cnn"), "--format", "onnx", "--format", "timm")
    assert done.code == 2
    assert "ONNX files need the package onnxscript" in done.err
    assert "pip install 'anykd[export]'" in done.err
    assert not (runs("cnn") / "export").exists()


def test_a_hub_that_cannot_be_reached_is_said_and_the_folder_stays(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("anykd.export.push.get_token", lambda: "hf_none")
    # Port 9 of this machine: nobody listens there.
    monkeypatch.setattr("anykd.export.push.HfApi", lambda: _api())
    flags = ("--format", "timm", "--push", "me/it", "--out", tmp_path)
    done = anykd("export", runs("cnn"), *flags)
    assert done.code == 2
    assert "was not pushed to me/it" in done.err
    assert (tmp_path / "timm" / "README.md").is_file()


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint="http://127.0.0.1:9", token="hf_none")
