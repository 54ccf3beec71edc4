"""Models by name, what is said of a wrong one, and what is saved."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from anykd.errors import ModelError
from anykd.models import StagedModel, create_staged, model_names, save_model
from tests.models.moved import move_weights

TINY_VIT = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


def moved(name: str, image_size: int | tuple[int, int] = 64, **options) -> StagedModel:
    staged = create_staged(name, num_classes=7, image_size=image_size, **options)
    move_weights(staged.model)
    return staged.eval()


class TestSmallSwins:
    @pytest.mark.parametrize(("name", "embed_dim"), [("pico", 48), ("nano", 64)])
    def test_have_the_papers_geometry(self, name, embed_dim):
        staged = create_staged(
            f"swin_{name}_patch4_window7_224", num_classes=7, image_size=(224, 224)
        )
        layers = staged.model.layers
        assert [len(layer.blocks) for layer in layers] == [2, 2, 2, 2]
        assert [layer.blocks[0].attn.num_heads for layer in layers] == [2, 4, 8, 16]
        assert [tuple(layer.blocks[0].window_size) for layer in layers] == [(7, 7)] * 4
        assert staged.shapes == tuple((embed_dim * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4))

    def test_are_listed_beside_timms_own(self):
        assert set(model_names("swin_[pn]*")) == {
            "swin_pico_patch4_window7_224",
            "swin_nano_patch4_window7_224",
        }

    def test_say_that_they_have_no_pretrained_weights(self):
        with pytest.raises(ModelError, match="swin_pico_patch4_window7_224 has no pretrained"):
            create_staged("swin_pico_patch4_window7_224", pretrained=True)


class TestWrongNames:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("resnet81", "resnet18"),
            ("swin_picco_patch4_window7_224", "swin_pico_patch4_window7_224"),
            ("vit_tiny_patch16_244", "vit_tiny_patch16_224"),
        ],
    )
    def test_a_misspelt_name_is_told_the_nearest(self, given, meant):
        with pytest.raises(ModelError, match=f"no model is called '{given}'") as caught:
            create_staged(given)
        assert meant in caught.value.hint

    def test_a_name_like_no_other_is_told_where_names_are_listed(self):
        with pytest.raises(ModelError) as caught:
            create_staged("qqqqqqqq")
        assert "anykd models" in caught.value.hint

    def test_a_wrong_tag_is_told_the_nearest(self):
        with pytest.raises(ModelError, match="resnet18 has no weights 'a1_in2k'") as caught:
            create_staged("resnet18.a1_in2k")
        assert "resnet18.a1_in1k" in caught.value.hint

    def test_an_option_that_the_model_lacks_is_named(self):
        with pytest.raises(ModelError, match=r"vit_tiny_patch16_224 .*patchsize") as caught:
            create_staged("vit_tiny_patch16_224", image_size=64, patchsize=8)
        assert "timm.create_model" in caught.value.hint

    def test_an_option_that_a_convolutional_model_lacks_is_named(self):
        with pytest.raises(ModelError, match=r"resnet18 .*patch_size"):
            create_staged("resnet18", image_size=64, patch_size=8)

    def test_a_folder_that_is_no_run_is_told_so(self, tmp_path):
        with pytest.raises(ModelError, match="is no finished run") as caught:
            create_staged(str(tmp_path))
        assert "run directory" in caught.value.hint


class TestImageSize:
    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("vit_tiny_patch16_224", 8),
            ("mixer_s32_224", 16),
            ("efficientformer_l1", 64),
            ("swin_tiny_patch4_window7_224", 2),
        ],
    )
    def test_that_a_model_cannot_take_is_said_at_once(self, name, size):
        with pytest.raises(ModelError, match=f"{name} .*{size} px"):
            create_staged(name, num_classes=7, image_size=size)

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resmlp_12_224"])
    def test_that_is_no_whole_number_of_patches_is_refused(self, name):
        with pytest.raises(ModelError, match=f"{name} .*30 px"):
            create_staged(name, num_classes=7, image_size=30)

    @pytest.mark.parametrize("size", [64, (64, 96)])
    @pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
    def test_is_kept_as_height_and_width(self, name, size):
        staged = create_staged(name, num_classes=7, image_size=size)
        assert staged.image_size == ((64, 64) if size == 64 else (64, 96))

    def test_is_the_models_own_where_none_is_given(self):
        assert create_staged("resnet18", num_classes=7).image_size == (224, 224)


class TestSaveModel:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("resnet18", {}),
            ("mobilenetv2_100", {"drop_rate": 0.1}),
            ("vit_tiny_patch16_224", TINY_VIT),
            ("resmlp_12_224", {}),
        ],
    )
    def test_timm_loads_what_is_saved(self, name, options, tmp_path):
        staged, images = moved(name, **options), torch.rand(2, 3, 64, 64)
        save_model(staged, tmp_path, class_names=tuple("abcdefg"))
        loaded: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        config = loaded.pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            expected = staged(images).logits
            torch.testing.assert_close(loaded((images - mean) / std), expected)
        assert expected.std() > 1e-3
        assert tuple(config["input_size"]) == (3, 64, 64)

    def test_plain_timm_loads_a_small_swin_where_anykd_is_not_imported(self, tmp_path):
        staged, images = moved("swin_pico_patch4_window7_224"), torch.rand(2, 3, 64, 64)
        save_model(staged, tmp_path / "student")
        save_file({"images": staged.prepare(images)}, tmp_path / "in.safetensors")
        script = (
            "import sys, timm, torch\n"
            "from safetensors.torch import load_file, save_file\n"
            "sys.modules['anykd'] = None\n"
            "model = timm.create_model('local-dir:student', pretrained=True).eval()\n"
            "with torch.no_grad():\n"
            "    logits = model(load_file('in.safetensors')['images'])\n"
            "save_file({'logits': logits}, 'out.safetensors')\n"
        )
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
        logits = load_file(tmp_path / "out.safetensors")["logits"]
        with torch.no_grad():
            torch.testing.assert_close(logits, staged(images).logits)

    def test_a_run_directory_gives_the_student_back(self, tmp_path):
        staged, images = (
            moved("vit_tiny_patch16_224", (64, 96), **TINY_VIT),
            torch.rand(2, 3, 64, 96),
        )
        save_model(staged, tmp_path / "student")
        loaded = create_staged(str(tmp_path)).eval()
        assert loaded.image_size == (64, 96)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images).logits, staged(images).logits)

    def test_channels_last_makes_no_difference(self, tmp_path):
        staged, images = moved("resnet18"), torch.rand(2, 3, 64, 64)
        save_model(staged, tmp_path / "plain")
        save_model(staged.to(memory_format=torch.channels_last), tmp_path / "last")
        assert staged.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        plain, last = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "last"))
        assert plain.keys() == last.keys()
        assert all(torch.equal(plain[key], last[key]) for key in plain)
        with torch.no_grad():
            assert staged(images).logits.isfinite().all()

    def test_does_not_change_the_model(self, tmp_path):
        staged = moved("resnet18").train()
        before, config = copy.deepcopy(staged.state_dict()), dict(staged.model.pretrained_cfg)
        save_model(staged, tmp_path)
        assert all(torch.equal(x, before[key]) for key, x in staged.state_dict().items())
        assert all(part.training for part in staged.modules())
        assert all(p.requires_grad for p in staged.parameters())
        assert dict(staged.model.pretrained_cfg) == config

    def test_writes_normalisation_crop_and_class_names(self, tmp_path):
        staged = moved("vit_tiny_patch16_224", **TINY_VIT)
        save_model(staged, tmp_path, class_names=tuple("abcdefg"), crop_pct=0.9)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["label_names"] == list("abcdefg")
        assert config["num_classes"] == 7
        assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
        assert config["pretrained_cfg"]["crop_pct"] == 0.9


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, StagedModel]:
    """A folder with the weights of a moved ResNet18, and that model."""
    folder, staged = tmp_path_factory.mktemp("weights"), moved("resnet18")
    save_model(staged, folder)
    return folder, staged


class TestWeights:
    def test_of_a_file_are_loaded(self, saved):
        folder, staged = saved
        loaded = create_staged(
            "resnet18", num_classes=7, image_size=64, weights=folder / "model.safetensors"
        )
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(images).logits, staged(images).logits)

    def test_with_another_head_are_refused(self, saved):
        path = saved[0] / "model.safetensors"
        with pytest.raises(
            ModelError, match=r"a head of 7 classes, the model a head of 8"
        ) as caught:
            create_staged("resnet18", num_classes=8, image_size=64, weights=path)
        assert "num_classes = 7" in caught.value.hint

    def test_of_another_architecture_are_refused(self, saved):
        path = saved[0] / "model.safetensors"
        with pytest.raises(ModelError, match="does not fit the model"):
            create_staged("resnet34", num_classes=7, image_size=64, weights=path)

    def test_that_are_missing_are_told_the_nearest_file(self, saved):
        path = saved[0] / "modle.safetensors"
        with pytest.raises(ModelError, match=r"no weights file at .*modle.safetensors") as caught:
            create_staged("resnet18", num_classes=7, image_size=64, weights=path)
        assert "model.safetensors" in caught.value.hint
