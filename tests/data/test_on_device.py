"""Views of whole batches, as a device makes them: here on the CPU, against the workers'."""

import numpy as np
import pytest
import torch

from anykd.data import AugmentConfig, DataConfig, ReplayLoader, TrainViews, open_data
from anykd.data.batched import crop_batch
from anykd.data.choices import Axis, Chooser
from anykd.data.on_device import made_by_workers
from anykd.data.reader import (
    ArrayReader,
    JoinedReader,
    Reader,
    SubsetReader,
    UnlabelledReader,
    pixel_array,
)
from anykd.data.rendering import crop_and_flip
from anykd.data.seeded import seeded
from anykd.errors import RecipeError
from anykd.types import Batch
from tests.data.loading import READER, indices, same, train_loader, train_views
from tests.data.pictures import noise, sample, smooth

CPU = torch.device("cpu")


def pictures(count: int = 24, height: int = 40, width: int = 30) -> ArrayReader:
    """Smooth images of one size, which lie in memory."""
    tall = np.array(smooth(count * height, width)).reshape(count, height, width, 3)
    return ArrayReader(tall, [i % 4 for i in range(count)])


ARRAYS = pictures()


class TestCropBatch:
    @pytest.mark.parametrize("size", [(32, 32), (20, 50)])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize(
        "options",
        [{}, {"crop_padding": 5}, {"preset": "none", "crop_pct": 0.8}],
        ids=["crop", "padding", "centre"],
    )
    def test_is_pillows_to_the_bit(self, options, interpolation, size):
        augment = AugmentConfig.model_validate(options | {"interpolation": interpolation})
        image = noise(48, 40)
        chooser = Chooser(augment, size)
        crops = []
        for seed in range(24):
            with seeded(seed):
                crops.append(chooser.crop(image))
        actual = crop_batch(
            torch.from_numpy(np.array(image)).expand(24, -1, -1, -1),
            torch.tensor([(crop.rows, crop.columns) for crop in crops]),
            torch.tensor([crop.flip for crop in crops]),
            size,
            interpolation=interpolation,
        )
        expected = [
            crop_and_flip(sample(image), crop, size, interpolation=interpolation, exact=True)
            for crop in crops
        ]
        assert torch.equal(actual, torch.stack(expected))

    def test_low_precision_around_it_changes_nothing(self):
        image = torch.from_numpy(np.array(noise(20, 20)))[None]
        axis = Axis(2, 15, 32, 0, 0, 32)
        arguments = image, torch.tensor([[axis, axis]]), torch.tensor([False]), (32, 32)
        expected = crop_batch(*arguments, interpolation="bicubic")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = crop_batch(*arguments, interpolation="bicubic")
        assert torch.equal(actual, expected)


def show(views: TrainViews, number: int, part: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All images of a view, made as a device makes them."""
    left, _, _ = views.draw(number, views.layout(number).tolist(), crops=part == "crops")
    return views.finish(left, torch.tensor(pixel_array(views.reader)))


class TestFinishedViews:
    @pytest.mark.parametrize("part", ["choices", "crops"])
    @pytest.mark.parametrize(
        "options",
        [
            {"preset": "cnn"},
            {"preset": "none", "crop_padding": 4, "flip": 0.5},
            {"preset": "none", "erasing": 0.7},
            {"preset": "none", "mixup": 0.8},
            {"preset": "none", "cutmix": 1.0},
            {"preset": "none", "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "flip": 0.5},
        ],
        ids=lambda options: "-".join(options) + options["preset"],
    )
    def test_are_the_workers_views_to_a_level(self, options, part):
        augment = AugmentConfig.model_validate(options)
        views = train_views(ARRAYS, augment=augment, label_smoothing=0.1, image_size=(32, 28))
        for number in range(3):
            positions = views.layout(number).tolist()
            images, labels = show(views, number, part)
            exact = views.show(number, positions, exact=part == "choices")
            bound = 1e-6 if part == "choices" else 2.01 / 255
            assert (images - exact.images).abs().max() <= bound
            assert exact.labels is not None
            assert labels is not None
            assert torch.equal(labels, exact.labels)

    @pytest.mark.parametrize("options", [{"preset": "vit"}, {"color_jitter": 0.4}])
    def test_are_recoloured_as_by_timm(self, options):
        augment = AugmentConfig.model_validate(options)
        views = train_views(ARRAYS, augment=augment)
        off = []
        for number in range(4):
            expected = views.show(number, views.layout(number).tolist(), exact=True).images
            off.append((show(views, number, "choices")[0] - expected).abs())
        # A level before some op may be more behind it: posterising and equalising have steps.
        assert (torch.stack(off) > 1.01 / 255).float().mean() < 1e-3

    @pytest.mark.parametrize("part", ["choices", "crops"])
    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_are_made_without_waiting_for_the_device(self, preset, part):
        # The meta device has no numbers: whoever asks for one there is refused.
        views = train_views(ARRAYS, augment=AugmentConfig(preset=preset))
        left, _, _ = views.draw(0, views.layout(0).tolist(), crops=part == "crops")
        source = torch.empty(len(ARRAYS), 40, 30, 3, dtype=torch.uint8, device="meta")
        images, labels = views.finish(left.to(torch.device("meta")), source)
        assert images.shape == (len(ARRAYS), 3, 16, 16)
        assert labels is not None
        assert images.is_meta
        assert labels.is_meta

    def test_without_labels_have_none(self):
        images, labels = show(train_views(UnlabelledReader(ARRAYS), num_classes=0), 0, "choices")
        assert labels is None
        assert torch.equal(images, show(train_views(ARRAYS), 0, "choices")[0])


class TestPixelArray:
    def test_follows_the_order_of_every_reader_that_wraps_one(self):
        subset = SubsetReader(ARRAYS, [5, 2, 9])
        for reader in (ARRAYS, subset, UnlabelledReader(subset), JoinedReader(subset, ARRAYS)):
            pixels = pixel_array(reader)
            assert pixels is not None
            assert len(pixels) == len(reader)
            for position, image in enumerate(pixels):
                assert np.array_equal(image, np.asarray(reader[position].image))

    def test_is_none_where_there_is_none(self):
        other = pictures(3, 16, 16)
        for reader in (READER, SubsetReader(READER, [1]), JoinedReader(ARRAYS, other)):
            assert pixel_array(reader) is None


class TestLoaders:
    @pytest.mark.parametrize("reader", [ARRAYS, READER], ids=["array", "images"])
    @pytest.mark.parametrize("preset", ["cnn", "vit"])
    def test_workers_ranks_and_skipped_steps_change_nothing(self, preset, reader):
        options = {
            "augment": AugmentConfig(preset=preset),
            "label_smoothing": 0.1,
            "views_on": "device",
        }
        one = list(train_loader(reader, batch_size=8, **options).batches(2))
        helped = train_loader(reader, batch_size=8, workers=2, **options)
        assert same(one, list(helped.batches(2)))
        assert same(one[1:], list(helped.batches(2, skip=1)))
        halves = [
            list(train_loader(reader, rank=rank, world_size=2, **options).batches(2))
            for rank in (0, 1)
        ]
        assert same(one, [Batch.joined(both) for both in zip(*halves, strict=True)])

    @pytest.mark.parametrize("reader", [ARRAYS, READER], ids=["array", "images"])
    def test_order_and_labels_are_those_of_the_workers(self, reader):
        options = {"augment": AugmentConfig(preset="vit"), "label_smoothing": 0.1}
        device, workers = (
            list(train_loader(reader, views_on=place, **options).batches(1))
            for place in ("device", "workers")
        )
        assert indices(device) == indices(workers)
        for a, b in zip(device, workers, strict=True):
            assert a.labels is not None
            assert b.labels is not None
            assert torch.equal(a.labels, b.labels)
            assert (a.images - b.images).abs().mean() < 1 / 255
            assert a.images.is_contiguous()

    def test_are_replayed(self):
        augment = AugmentConfig(preset="vit")
        trained = list(train_loader(ARRAYS, augment=augment, views_on="device").batches(2))
        views = train_views(ARRAYS, augment=augment)
        place = {int(position): slot for slot, position in enumerate(views.layout(2))}
        wanted = [(2, [place[i] for i in indices([batch])]) for batch in trained]
        loader = ReplayLoader(views, workers=0, views_on="device")
        assert same(list(loader.batches(wanted)), trained)

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize(("policy", "sizes"), [("replace", [2, 2]), ("drop", [1, 2])])
    def test_what_cannot_be_read_is_replaced_or_dropped(self, write_images, policy, sizes, workers):
        write_images("val", cat=1, dog=1)
        root = write_images("train", cat=3, dog=1)
        (root / "train" / "cat" / "1.png").write_bytes(b"no image")
        reader = open_data(DataConfig(source=str(root))).train
        device, there = (
            train_loader(
                reader,
                num_classes=2,
                batch_size=2,
                workers=workers,
                bad_images=policy,
                max_bad_fraction=0.5,
                augment=AugmentConfig(preset="none", flip=0.5),
                views_on=place,
            )
            for place in ("device", "workers")
        )
        found, expected = list(device.batches(0)), list(there.batches(0))
        assert sorted(len(batch) for batch in found) == sizes
        assert same(found, expected)
        assert device.bad_images == there.bad_images != {}


class TestWhoMakesThem:
    @pytest.mark.parametrize(
        ("reader", "options", "part"),
        [
            (ARRAYS, {}, "choices"),
            (SubsetReader(ARRAYS, [0, 1]), {"preset": "vit"}, "choices"),
            (ARRAYS, {"interpolation": "nearest"}, "crops"),
            (READER, {}, "crops"),
            (ARRAYS, {"rand_augment": "rand-m9-t3a"}, "views"),
        ],
    )
    def test_auto_gives_a_gpu_what_it_can_do(self, reader: Reader, options, part):
        views = train_views(reader, augment=AugmentConfig.model_validate(options))
        assert made_by_workers(views, "auto", torch.device("cuda")) == part
        assert made_by_workers(views, "auto", CPU) == "views"
        assert made_by_workers(views, "workers", torch.device("cuda")) == "views"

    def test_a_device_that_is_asked_for_what_it_cannot_is_told_so(self):
        views = train_views(ARRAYS, augment=AugmentConfig(rand_augment="rand-m9-t3a"))
        with pytest.raises(RecipeError, match="may choose GaussianBlur, which is not") as caught:
            made_by_workers(views, "device", CPU)
        assert "data.views_on = 'workers'" in caught.value.hint

    def test_a_set_too_large_for_the_device_is_cropped_by_workers(self, monkeypatch):
        monkeypatch.setattr("anykd.data.on_device._MOST_BYTES", 24 * 40 * 30 * 3 - 1)
        assert made_by_workers(train_views(ARRAYS), "device", CPU) == "crops"
