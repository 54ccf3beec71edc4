"""How records are laid out in files."""

import pytest

from anykd.data.cache import Layout

SIZES = [
    # views, slots, bytes of a record
    (1, 1, 4),
    (1, 2, 200),
    (3, 100, 200),
    (1, 1797, 20),
    (40, 33, 84),
    (4, 50_000, 200),
    (10, 1_281_167, 84),
    (1, 1_281_167, 2000),
    (2, 1000, 2**25),
    (1, 10, 2**28),
]


@pytest.mark.parametrize(("views", "slots", "size"), SIZES)
class TestPlanned:
    def test_has_every_record_once_and_in_order(self, views, slots, size):
        layout = Layout.planned(num_views=views, num_slots=slots, record_bytes=size)
        for view in range(views):
            mine = [shard for shard in layout.shards if shard.view == view]
            assert [shard.number for shard in mine] == [*range(len(mine))]
            ends = [0, *(shard.slots.stop for shard in mine)]
            assert [shard.slots for shard in mine] == [*map(range, ends[:-1], ends[1:])]
            assert ends[-1] == slots
        assert all(shard.slots for shard in layout.shards)
        assert layout.bytes == views * slots * size

    def test_keeps_pairs_of_neighbours_in_one_file(self, views, slots, size):
        layout = Layout.planned(num_views=views, num_slots=slots, record_bytes=size)
        assert all(shard.slots.start % 2 == 0 for shard in layout.shards)

    def test_has_files_that_are_neither_large_nor_few(self, views, slots, size):
        layout = Layout.planned(num_views=views, num_slots=slots, record_bytes=size)
        assert layout.shard_slots <= 2**14
        assert layout.shard_slots * size <= max(2**26 + size, 2 * size)
        assert len(layout.shards) >= min(16, views * slots // 2) * 0.6


def test_imagenet_in_files_of_some_16_thousand_records():
    layout = Layout.planned(num_views=10, num_slots=1_281_167, record_bytes=84)
    assert (layout.shard_slots, len(layout.shards)) == (16_218, 790)
    assert layout.bytes == 1_076_180_280
    last = layout.shards[-1]
    assert last.name == "view-0009-00078.npy"
    assert last.slots == range(1_265_004, 1_281_167)
