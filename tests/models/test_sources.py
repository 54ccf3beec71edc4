"""Models of every source by name: built, refused, saved and loaded again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from anykd.errors import ModelError
from anykd.models import (
    StagedModel,
    create_staged,
    has_weights,
    model_names,
    require_known,
    save_model,
)
from anykd.models.sources.from_torchvision import names as torchvision_names
from tests.models.moved import move_weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

CONVNEXT = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
}

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    '''A classifier that knows nothing of anykd.'''

    def __init__(self, num_classes=10, width=4):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
                for a, b in zip(widths, widths[1:])
            )
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Staged(Net):
    '''The same as a backbone.'''

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "input_size": (3, 32, 32)}

    def __init__(self, num_classes=10, width=4):
        super().__init__(max(num_classes, 1), width)
        if num_classes == 0:
            self.fc = nn.Identity()

    def forward_stages(self, x):
        maps = []
        for stage in self.body:
            maps.append(x := stage(x))
        return maps, x

    def forward_head(self, final, pre_logits=False):
        pooled = final.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)


def make(num_classes=10, width=4):
    return Net(num_classes, width)


def fixed():
    return Net(10)


def pretrained(pretrained=False):
    net = Net(10)
    if pretrained:
        nn.init.constant_(net.fc.weight, 0.25)
    return net


def number():
    return 3
"""


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "nets.py").write_text(OWN)
    return tmp_path / "nets.py"


def moved(name: str, size: int = 64, num_classes: int = 7, **options: Any) -> StagedModel:
    staged = create_staged(name, num_classes=num_classes, image_size=size, **options)
    move_weights(staged.model)
    return staged.eval()


class TestNames:
    def test_are_listed_for_each_source(self):
        assert "torchvision:resnet18" in model_names("torchvision:resnet*")
        assert "torchvision:swin_t" not in model_names("torchvision:resnet*")
        assert "transformers:convnext" in model_names("transformers:*")
        assert not any(":" in name for name in model_names("*resnet18*"))


class TestTorchvision:
    def test_every_classifier_is_known(self):
        assert {"resnet18", "vit_b_16", "swin_t"} <= set(torchvision_names())
        for name in torchvision_names():
            require_known(f"torchvision:{name}")
            for weights in models.get_model_weights(name):
                require_known(f"torchvision:{name}.{weights.name}")
            assert has_weights(f"torchvision:{name}")

    @pytest.mark.parametrize(
        ("name", "said", "hint"),
        [
            ("torchvision:resnet81", "torchvision has no classifier 'resnet81'", "resnet18"),
            ("torchvision:resnet18.V1", "has no weights 'V1'", "IMAGENET1K_V1"),
            ("torchvison:resnet18", "no source of models .* 'torchvison'", "torchvision"),
        ],
    )
    def test_a_wrong_name_is_told_the_nearest(self, name, said, hint):
        for ask in (require_known, create_staged):
            with pytest.raises(ModelError, match=said) as caught:
                ask(name)
            assert hint in caught.value.hint

    def test_an_option_that_the_model_lacks_is_named(self):
        with pytest.raises(ModelError, match=r"torchvision:resnet18 .*patch") as caught:
            create_staged("torchvision:resnet18", patch=8)
        assert "torchvision.models.resnet18" in caught.value.hint

    def test_images_that_a_model_cannot_take_are_refused(self):
        with pytest.raises(ModelError, match=r"torchvision:maxvit_t .* 64 px"):
            create_staged("torchvision:maxvit_t", image_size=64)

    def test_pretrained_weights_bring_view_and_class_names(self, tmp_path, monkeypatch):
        # Downloaded weights lie in this folder under their own name; here are others of that shape.
        weights: Any = models.get_model_weights("squeezenet1_1")["IMAGENET1K_V1"]
        model = models.squeezenet1_1(weights=None)
        move_weights(model)
        (tmp_path / "checkpoints").mkdir()
        torch.save(model.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        staged = create_staged("torchvision:squeezenet1_1", pretrained=True, image_size=64).eval()
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = model.eval()(staged.prepare(images))
            assert torch.equal(staged(images).logits, expected)
        assert staged.class_names[:2] == ("tench", "goldfish")
        assert staged.view.mean == (0.485, 0.456, 0.406)
        assert staged.crop_pct == 0.875
        assert staged.view.interpolation == "bilinear"
        assert staged.loaded is not None
        assert not staged.loaded.new_head
        other = create_staged(
            "torchvision:squeezenet1_1", pretrained=True, image_size=64, num_classes=3
        )
        assert (other.num_classes, other.class_names) == (3, ())
        assert other.loaded is not None
        assert (other.loaded.new_head, other.loaded.saved_classes) == (True, 1000)
        assert torch.equal(
            other.model.model.features[0].weight, staged.model.model.features[0].weight
        )


class TestTransformers:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        config = AutoConfig.for_model("convnext", **CONVNEXT, num_labels=3)
        config.id2label = {0: "ant", 1: "bee", 2: "cat"}
        model = AutoModelForImageClassification.from_config(config)
        move_weights(model)
        model.save_pretrained(tmp_path / "model")
        processor = {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 64},
            "crop_pct": 0.5,
            "resample": 3,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
        }
        (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
        (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        return tmp_path / "model"

    def test_a_folder_brings_weights_view_class_names_and_licence(self, folder):
        staged = create_staged(f"transformers:{folder}", pretrained=True).eval()
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = model(pixel_values=staged.prepare(images)).logits
            assert torch.equal(staged(images).logits, expected)
        assert staged.image_size == (64, 64)
        assert staged.view.mean == (0.1, 0.2, 0.3)
        assert staged.view.std == (0.4, 0.5, 0.6)
        assert staged.view.interpolation == "bicubic"
        assert (staged.crop_pct, staged.license) == (0.5, "mit")
        assert staged.class_names == ("ant", "bee", "cat")

    def test_without_weights_a_folder_gives_random_ones(self, folder):
        first = create_staged(f"transformers:{folder}")
        saved = load_file(folder / "model.safetensors")
        weight = "classifier.weight"
        assert not torch.equal(first.model.model.state_dict()[weight], saved[weight])

    def test_other_classes_give_a_new_head_and_no_names(self, folder):
        staged = create_staged(f"transformers:{folder}", pretrained=True, num_classes=5)
        assert (staged.num_classes, staged.class_names) == (5, ())
        assert staged.loaded is not None
        assert (staged.loaded.new_head, staged.loaded.saved_classes) == (True, 3)
        saved = load_file(folder / "model.safetensors")
        own = staged.model.model.state_dict()
        same = [key for key in saved if torch.equal(own[key], saved[key])]
        assert set(saved) - set(same) == {"classifier.weight", "classifier.bias"}

    def test_a_backbone_has_no_head_unless_one_is_asked_for(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = ["ConvNextModel"]
        (folder / "config.json").write_text(json.dumps(config))
        state = load_file(folder / "model.safetensors")
        body = {key: value for key, value in state.items() if not key.startswith("classifier")}
        save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
        assert create_staged(f"transformers:{folder}", pretrained=True).num_classes == 0
        staged = create_staged(f"transformers:{folder}", pretrained=True, num_classes=4)
        assert staged.num_classes == 4
        assert staged.loaded is not None
        assert staged.loaded.new_head

    def test_code_that_lies_beside_a_model_is_not_executed(self, folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForImageClassification": "evil.Evil"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
        create_staged(f"transformers:{folder}", pretrained=True)
        assert not (tmp_path / "executed").exists()

    def test_pickled_weights_are_not_read(self, folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert not has_weights(f"transformers:{folder}")
        with pytest.raises(ModelError, match="has no pretrained weights"):
            create_staged(f"transformers:{folder}", pretrained=True)

    @pytest.mark.parametrize(
        ("name", "said", "hint"),
        [
            ("transformers:convnet", "no image classifier 'convnet'", "convnext"),
            ("transformers:./nowhere", "no such folder", "folder"),
            ("transformers:convnext", "no pretrained weights", "hub"),
        ],
    )
    def test_a_wrong_name_is_told_what_would_do(self, name, said, hint):
        with pytest.raises(ModelError, match=said) as caught:
            create_staged(name, pretrained=True)
        assert hint in caught.value.hint

    def test_a_folder_without_a_config_is_refused(self, tmp_path):
        with pytest.raises(ModelError, match=r"it has no config\.json"):
            require_known(f"transformers:{tmp_path}")

    def test_an_option_that_the_config_lacks_is_named(self):
        with pytest.raises(ModelError, match="does not take these options: patchsize") as caught:
            create_staged("transformers:vit", patchsize=8)
        assert "patch_size" in caught.value.hint

    def test_where_transformers_is_missing_the_command_is_said(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModelError, match="not installed") as caught:
            require_known("transformers:convnext")
        assert caught.value.hint == "pip install 'anykd[hf]'"


class TestOwnCode:
    @pytest.mark.parametrize("factory", ["make", "Net", "Staged"])
    @pytest.mark.parametrize("num_classes", [7, 0])
    def test_a_function_or_class_of_a_file_makes_a_model(self, factory, num_classes, own):
        staged = create_staged(f"{own}:{factory}", num_classes=num_classes, image_size=32, width=8)
        assert staged.shapes == ((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2))
        assert staged.num_classes == num_classes
        assert staged.has_tail or factory == "Staged"

    def test_a_backbones_own_config_is_taken(self, own):
        staged = create_staged(f"{own}:Staged")
        assert (staged.image_size, staged.view.std) == ((32, 32), (0.2, 0.2, 0.2))

    def test_a_module_that_can_be_imported_makes_a_model(self):
        staged = create_staged("torchvision.models:resnet18", num_classes=3, image_size=32)
        assert staged.num_classes == 3

    def test_the_weights_that_a_function_loads_are_asked_for(self, own):
        staged = create_staged(f"{own}:pretrained", image_size=32, pretrained=True)
        assert staged.model.model.fc.weight.eq(0.25).all()
        with pytest.raises(ModelError, match="takes no pretrained, so its weights would be random"):
            create_staged(f"{own}:make", image_size=32, pretrained=True)

    @pytest.mark.parametrize(
        ("factory", "options", "said"),
        [
            ("mak", {}, "has no function 'mak'"),
            ("make", {"depth": 3}, "fails with depth=3: TypeError"),
            ("number", {}, "makes a int, not an nn.Module"),
            ("fixed", {"num_classes": 7}, "makes a model of 10 classes, 7 are asked for"),
        ],
    )
    def test_what_a_function_does_wrong_is_said(self, factory, options, said, own):
        with pytest.raises(ModelError, match=said):
            create_staged(f"{own}:{factory}", image_size=32, **options)

    def test_a_file_that_fails_or_is_missing_is_refused_at_once(self, own):
        own.with_name("broken.py").write_text("import nothing_like_this\n")
        with pytest.raises(ModelError, match=r"broken\.py cannot be read: ModuleNotFoundError"):
            require_known(f"{own.with_name('broken.py')}:make")
        with pytest.raises(ModelError, match="no file at") as caught:
            require_known(f"{own.with_name('net.py')}:make")
        assert "nets.py" in caught.value.hint
        with pytest.raises(ModelError, match="does not say which function"):
            require_known(str(own))


class TestSavedModels:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("torchvision:resnet18", {}),
            ("torchvision:squeezenet1_1", {"dropout": 0.1}),
            ("transformers:convnext", CONVNEXT),
            ("transformers:vit", VIT),
            ("OWN:make", {"width": 8}),
            ("OWN:Staged", {"width": 8}),
        ],
    )
    @pytest.mark.parametrize("num_classes", [7, 0])
    def test_a_run_gives_the_student_back(self, name, options, num_classes, own, tmp_path):
        name = name.replace("OWN", str(own))
        staged, images = moved(name, num_classes=num_classes, **options), torch.rand(2, 3, 64, 64)
        names = tuple("abcdefg")[:num_classes]
        save_model(staged, tmp_path / "run" / "student", class_names=names, crop_pct=0.9)
        require_known(str(tmp_path / "run"))
        for loaded in (
            create_staged(str(tmp_path / "run")),
            create_staged(f"local-dir:{tmp_path / 'run' / 'student'}", pretrained=True),
        ):
            with torch.no_grad():
                assert torch.equal(loaded.eval()(images).logits, staged(images).logits)
            assert loaded.view == staged.view
            assert (loaded.class_names, loaded.crop_pct) == (names, 0.9)
            assert loaded.num_classes == num_classes

    @pytest.mark.parametrize("name", ["torchvision:resnet18", "OWN:make", "resnet18"])
    def test_a_run_may_begin_another_with_other_classes(self, name, own, tmp_path):
        staged = moved(name.replace("OWN", str(own)))
        save_model(staged, tmp_path / "run" / "student", class_names=tuple("abcdefg"))
        other = create_staged(str(tmp_path / "run"), num_classes=3)
        assert other.num_classes == 3
        assert other.loaded is not None
        assert (other.loaded.new_head, other.loaded.saved_classes) == (True, 7)

    def test_torchvision_alone_takes_the_weights(self, tmp_path):
        staged, images = moved("torchvision:mobilenet_v3_small"), torch.rand(2, 3, 64, 64)
        save_model(staged, tmp_path)
        model = models.mobilenet_v3_small(num_classes=7)
        model.load_state_dict(load_file(tmp_path / "model.safetensors"))
        with torch.no_grad():
            found = model.eval()(staged.prepare(images))
            assert torch.equal(found, staged(images).logits)

    def test_transformers_alone_loads_model_and_processor(self, tmp_path):
        staged, images = moved("transformers:vit", **VIT), torch.rand(2, 3, 64, 64)
        save_model(staged, tmp_path, class_names=tuple("abcdefg"))
        model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            found = model(pixel_values=staged.prepare(images)).logits
            assert torch.equal(found, staged(images).logits)
        assert model.config.id2label[2] == "c"
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        given = (images * 255).round().to(torch.uint8)
        prepared = processor(images=list(given), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(prepared, staged.prepare(given / 255), atol=1e-5, rtol=0)

    def test_weights_of_torchvision_itself_fill_a_model(self, tmp_path):
        model = models.resnet18(num_classes=7)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
        staged = create_staged(
            "torchvision:resnet18", num_classes=7, image_size=32, weights=tmp_path / "w.pth"
        )
        assert torch.equal(staged.model.model.fc.weight, model.fc.weight)

    def test_of_what_is_no_plain_function_the_named_file_is_kept(self, own, tmp_path):
        lines = "\nfrom functools import partial\nfrom torchvision.models import resnet18 as tv\n"
        own.write_text(own.read_text() + lines + "thin = partial(make, width=4)\n")
        for factory in ("thin", "tv"):
            staged = moved(f"{own}:{factory}")
            save_model(staged, tmp_path / factory / "student")
            loaded, images = create_staged(str(tmp_path / factory)), torch.rand(2, 3, 64, 64)
            with torch.no_grad():
                assert torch.equal(loaded.eval()(images).logits, staged(images).logits)

    def test_a_small_stem_is_for_timm(self):
        with pytest.raises(ModelError, match="torchvision:resnet18 takes no stem") as caught:
            create_staged("torchvision:resnet18", image_size=32, stem="small")
        assert "CNNs of timm" in caught.value.hint

    def test_a_saved_config_that_cannot_be_read_is_told(self, own, tmp_path):
        save_model(moved(f"{own}:make"), tmp_path / "run" / "student")
        (tmp_path / "run" / "student" / "config.json").write_text("{")
        with pytest.raises(ModelError, match=r"config\.json cannot be read"):
            create_staged(str(tmp_path / "run"))

    def test_a_run_does_not_execute_what_lies_in_it_or_is_installed(self, own, tmp_path):
        staged = moved(f"{own}:make")
        student = tmp_path / "run" / "student"
        save_model(staged, student)
        evil = tmp_path / "run" / "evil.py"
        evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
        for name in (f"{evil}:make", "evil.py:make", f"{subprocess.__file__}:Popen", "os:system"):
            config = json.loads((student / "config.json").read_text())
            config["anykd"]["model"] = name
            (student / "config.json").write_text(json.dumps(config))
            with pytest.raises(ModelError, match=r"the model of .*run is made by") as caught:
                create_staged(str(tmp_path / "run"))
            assert "model.safetensors" in caught.value.hint
        assert not (tmp_path / "executed").exists()

    def test_a_run_whose_code_is_gone_says_so(self, own, tmp_path):
        save_model(moved(f"{own}:make"), tmp_path / "run" / "student")
        own.unlink()
        with pytest.raises(ModelError, match="which is not there"):
            create_staged(str(tmp_path / "run"))
