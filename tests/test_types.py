"""What a batch brings along wherever it goes."""

import pytest
import torch

from anykd.types import Batch, Stored


def batch(count: int = 5) -> Batch:
    """Images that are known to one of two teachers, and to nobody in between."""
    rows = torch.arange(count)
    known = Stored(rows[:, None].expand(count, 3).float(), None)
    vectors = Stored(None, rows[:, None].expand(count, 2).float())
    images = rows[:, None, None, None].expand(count, 3, 4, 4).float()
    return Batch(images, torch.eye(count), rows, (known, None, vectors))


def tensors_of(one: Batch) -> list[torch.Tensor]:
    known = [part for stored in one.stored if stored for part in vars(stored).values()]
    found = [part for part in (one.images, one.labels, one.indices, *known) if part is not None]
    assert len(found) == 5
    return found


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_have_what_belongs_to_their_images(parts):
    whole = batch()
    split = whole.split(parts)
    assert sum(len(part) for part in split) == len(whole)
    for part in split:
        rows = part.indices
        first, second, third = part.stored
        assert rows is not None
        assert first is not None
        assert third is not None
        assert first.logits is not None
        assert third.pooled is not None
        assert torch.equal(part.images[:, 0, 0, 0].long(), rows)
        assert torch.equal(first.logits[:, 0].long(), rows)
        assert torch.equal(third.pooled[:, 0].long(), rows)
        assert (first.pooled, second, third.logits) == (None, None, None)


def test_parts_of_what_is_known_to_nobody_have_nothing():
    parts = Batch(torch.rand(4, 3, 2, 2)).split(2)
    assert [(part.labels, part.indices, part.stored) for part in parts] == [(None, None, ())] * 2


def test_everything_goes_to_the_device():
    moved = batch().to("meta", memory_format=torch.channels_last)
    assert [tensor.device.type for tensor in tensors_of(moved)] == ["meta"] * 5
    assert moved.images.is_contiguous(memory_format=torch.channels_last)


def test_parts_put_together_are_the_whole():
    whole = batch()
    joined = Batch.joined(whole.split(3))
    assert len(joined.stored) == 3
    for tensor, expected in zip(tensors_of(joined), tensors_of(whole), strict=True):
        assert torch.equal(tensor, expected)
    assert joined.stored[1] is None


def test_rows_bring_what_is_known_of_them():
    chosen = torch.tensor([3, 0, 3])
    for tensor, expected in zip(tensors_of(batch().rows(chosen)), tensors_of(batch()), strict=True):
        assert torch.equal(tensor, expected[chosen])


def test_nothing_is_stored_unless_it_is_given():
    assert Batch(torch.rand(1, 3, 2, 2)).to("cpu").stored == ()
