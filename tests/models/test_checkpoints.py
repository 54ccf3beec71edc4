"""Weights of files that others wrote: what is found, renamed, refused and reported."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from anykd.errors import ModelError
from anykd.models import StagedModel, create_staged
from tests.models.moved import move_weights

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a moved ResNet18 of 7 classes."""
    model = timm.create_model("resnet18", num_classes=7)
    move_weights(model)
    return model.state_dict()


def load(path: Path, num_classes: int = 7, **options: Any) -> StagedModel:
    return create_staged(
        "resnet18", num_classes=num_classes, image_size=32, weights=path, **options
    )


def assert_holds(staged: StagedModel, state: State) -> None:
    own = staged.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


class TestLayoutsOfFiles:
    @pytest.mark.parametrize("key", ["", "state_dict", "model", "model_ema", "state_dict_ema"])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
    def test_a_state_dict_is_found_wherever_scripts_put_it(self, key, prefix, state, tmp_path):
        renamed = {f"{prefix}{name}": value for name, value in state.items()}
        content = {key: renamed, "epoch": 3} if key else renamed
        torch.save(content, tmp_path / "weights.pth")
        staged = load(tmp_path / "weights.pth")
        assert_holds(staged, state)
        assert staged.loaded is not None
        assert staged.loaded.part == key
        assert str(tmp_path / "weights.pth") in str(staged.loaded)

    def test_the_average_is_taken_before_the_weights_that_it_is_of(self, state, tmp_path):
        other = {name: value + 1 for name, value in state.items()}
        torch.save({"model": other, "model_ema": state}, tmp_path / "weights.pth")
        assert_holds(load(tmp_path / "weights.pth"), state)

    def test_arguments_beside_the_weights_do_no_harm(self, state, tmp_path):
        content = {"model": state, "args": argparse.Namespace(lr=0.1)}
        torch.save(content, tmp_path / "weights.pth")
        assert_holds(load(tmp_path / "weights.pth"), state)

    def test_safetensors_in_half_precision_fill_a_model_in_full(self, state, tmp_path):
        half = {key: value.half().contiguous() for key, value in state.items()}
        save_file(half, tmp_path / "weights.safetensors")
        staged = load(tmp_path / "weights.safetensors")
        assert staged.model.conv1.weight.dtype == torch.float32
        expected = state["conv1.weight"].half().float()
        assert torch.equal(staged.model.conv1.weight, expected)

    def test_missing_counters_of_batches_are_no_fault(self, state, tmp_path):
        fewer = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(fewer, tmp_path / "weights.pth")
        staged = load(tmp_path / "weights.pth")
        assert_holds(staged, fewer)
        assert staged.loaded is not None
        assert staged.loaded.missing == ()

    def test_an_old_swin_that_merges_at_the_end_of_a_stage_is_renamed(self, tmp_path):
        options: dict[str, Any] = {
            "embed_dim": 16,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 2, 4, 8),
        }
        name = "swin_tiny_patch4_window7_224"
        model: Any = timm.create_model(name, num_classes=7, img_size=64, **options)
        move_weights(model)
        old = {}
        for key, value in model.state_dict().items():
            for i in (1, 2, 3):  # timm 0.6 had the merging behind the stage before
                key = key.replace(f"layers.{i}.downsample", f"layers.{i - 1}.downsample_")
            old[key.replace("downsample_", "downsample").replace("head.fc.", "head.")] = value
        assert "layers.0.downsample.norm.weight" in old
        torch.save({"model": old}, tmp_path / "swin.pth")
        path = tmp_path / "swin.pth"
        staged = create_staged(name, num_classes=7, image_size=64, weights=path, **options)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = model.eval()(staged.prepare(images))
            torch.testing.assert_close(staged.eval()(images).logits, expected)

    def test_positions_are_resized_to_the_models_grid(self, tmp_path):
        options: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
        name = "vit_tiny_patch16_224"
        saved = create_staged(name, num_classes=7, image_size=32, **options).model
        torch.save(saved.state_dict(), tmp_path / "vit.pth")
        path = tmp_path / "vit.pth"
        staged = create_staged(name, num_classes=7, image_size=64, weights=path, **options)
        assert staged.model.pos_embed.shape == (1, 65, 24)
        assert torch.equal(staged.model.head.weight, saved.head.weight)


class TestHeads:
    @pytest.fixture
    def path(self, state, tmp_path) -> Path:
        save_file(state, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    def test_of_another_size_are_refused_with_both_sizes(self, path):
        with pytest.raises(ModelError, match=r"a head of 7 classes, the model a head of 9") as e:
            load(path, num_classes=9)
        assert "num_classes = 7" in e.value.hint

    def test_of_another_size_are_left_out_and_reported_where_that_is_allowed(self, path, state):
        torch.manual_seed(1)
        staged = load(path, num_classes=9, new_head=True)
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        assert_holds(staged, body)
        loaded = staged.loaded
        assert loaded is not None
        assert (loaded.new_head, loaded.saved_classes) == (True, 7)
        assert set(loaded.missing) == set(loaded.unused) == {"fc.weight", "fc.bias"}
        assert "without its head of 7 classes" in str(loaded)
        assert staged.num_classes == 9

    def test_that_fit_are_kept_even_where_a_new_one_is_allowed(self, path, state):
        staged = load(path, new_head=True)
        assert_holds(staged, state)
        assert staged.loaded is not None
        assert not staged.loaded.new_head

    def test_are_left_out_where_none_is_asked_for(self, path):
        staged = load(path, num_classes=0)
        assert staged.num_classes == 0
        assert staged.loaded is not None
        assert (staged.loaded.new_head, staged.loaded.saved_classes) == (False, 7)

    def test_that_are_missing_are_told(self, state, tmp_path):
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        torch.save(body, tmp_path / "body.pth")
        with pytest.raises(ModelError, match=r"no head, the model a head of 7 classes"):
            load(tmp_path / "body.pth")
        loaded = load(tmp_path / "body.pth", new_head=True).loaded
        assert loaded is not None
        assert (loaded.new_head, loaded.saved_classes) == (True, None)
        assert "has no head" in str(loaded)

    def test_a_head_may_not_hide_other_differences(self, path):
        with pytest.raises(ModelError, match=r"does not fit the model: it lacks layer1\.2"):
            create_staged("resnet34", num_classes=9, weights=path, new_head=True, image_size=32)


class TestRefusals:
    def test_what_a_file_lacks_or_has_too_much_is_told_in_words(self, state, tmp_path):
        changed = {key: value for key, value in state.items() if key != "bn1.weight"}
        changed["extra.weight"] = torch.ones(1)
        changed["conv1.weight"] = torch.ones(64, 3, 3, 3)
        torch.save(changed, tmp_path / "weights.pth")
        with pytest.raises(ModelError) as caught:
            load(tmp_path / "weights.pth")
        message = str(caught.value)
        assert "it lacks bn1.weight; it has extra.weight too much" in message
        assert "conv1.weight of another size ((64, 3, 3, 3), not (64, 3, 7, 7))" in message

    def test_a_pickle_that_could_execute_code_is_not_read(self, tmp_path):
        marker = tmp_path / "executed"
        torch.save({"model": Evil(marker)}, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match="cannot be read as weights alone") as caught:
            load(tmp_path / "weights.pth")
        assert "state_dict()" in caught.value.hint
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("content", "said"), [({"epoch": 3}, "no state dict; it holds epoch"), ([1], "a list")]
    )
    def test_a_file_without_weights_is_told_what_it_holds(self, content, said, tmp_path):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match=said):
            load(tmp_path / "weights.pth")

    def test_a_broken_safetensors_file_is_refused(self, tmp_path):
        (tmp_path / "weights.safetensors").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="is no safetensors file"):
            load(tmp_path / "weights.safetensors")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class TestRealFiles:
    @pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv2_100"])
    def test_the_pretrained_mobilenets_load(self, name, dev_data):
        path = dev_data / "weights" / f"{name}_224.safetensors"
        staged = create_staged(name, weights=path, pad_type="same")
        assert staged.num_classes == 1000
        assert staged.loaded is not None
        assert staged.loaded.missing == staged.loaded.unused == ()
        with pytest.raises(ModelError, match="a head of 1000 classes, the model a head of 100"):
            create_staged(name, weights=path, pad_type="same", num_classes=100)
