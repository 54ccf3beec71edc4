import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from anykd.data import DataConfig, DataSplits, Reader, open_data, open_split
from anykd.data.reader import file_size
from anykd.data.shard_files import expand_braces
from anykd.errors import DataError
from tests.data.loading import same, train_loader
from tests.data.readers import labels_of
from tests.data.sources import encoded, pixels, write_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Leave the user's cache alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anykd"


def open_spec(spec: str, **options) -> DataSplits:
    return open_data(DataConfig(**{"source": spec, "val_fraction": 0.25} | options))


def everything(spec: str, **options) -> Reader:
    return open_split(DataConfig(source=spec, **options), "all").val


def shows(reader: Reader, *numbers: int) -> bool:
    """Whether a reader has just these pictures."""
    found = [np.asarray(reader[position].image) for position in range(len(reader))]
    return len(found) == len(numbers) and all(
        np.array_equal(one, pixels(number)) for one, number in zip(found, numbers, strict=True)
    )


def write(path: Path, *samples: dict) -> str:
    """One shard, by WebDataset's own writer; samples are numbered where they have no key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:  # type: ignore[attr-defined]
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:03d}"} | sample)
    return f"wds:{path}"


def write_tar(path: Path, *members: tuple[str, bytes | tarfile.TarInfo], **options) -> str:
    """One shard, file by file."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.name = name
                archive.addfile(info)
    return f"wds:{path}"


PAIR = [{"png": encoded(number), "cls": number % 2} for number in range(8)]


class TestWhatWebDatasetWrites:
    def test_is_read_in_order_over_all_shards(self, tmp_path):
        reader = everything(write_shards(tmp_path))
        assert len(list((tmp_path / "shards").iterdir())) == 3
        assert shows(reader, *range(12))
        assert labels_of(reader) == [0, 1, 2] * 4
        assert [reader[position].label for position in range(12)] == [0, 1, 2] * 4
        assert reader.key(7) == "train-000001.tar/pets/0007"
        assert file_size(reader, 7) == len(encoded(7))
        assert not reader.in_memory

    def test_can_be_read_in_any_order_and_again(self, tmp_path):
        reader = everything(write_shards(tmp_path))
        for position in (11, 0, 6, 6, 3, 11):
            assert np.array_equal(np.asarray(reader[position].image), pixels(position))

    def test_is_divided_by_the_names_of_the_shards(self, tmp_path):
        write_shards(tmp_path, 6)
        write_shards(tmp_path, 3, name="val", per_shard=2)
        write_shards(tmp_path, 4, name="test")
        splits = open_spec(f"wds:{tmp_path / 'shards'}")
        assert splits.name == "shards"
        assert (len(splits.train), len(splits.val)) == (6, 3)
        assert splits.val.key(2) == "val-000001.tar/pets/0002"

    def test_is_divided_by_folders(self, tmp_path):
        write(tmp_path / "train" / "0.tar", *PAIR)
        write(tmp_path / "validation" / "0.tar", *PAIR[:3])
        splits = open_spec(f"wds:{tmp_path}")
        assert (len(splits.train), len(splits.val)) == (8, 3)
        assert splits.train.key(0) == "train/0.tar/000"

    def test_is_divided_by_fraction_where_there_is_one_part(self, tmp_path):
        splits = open_spec(write_shards(tmp_path), val_fraction=0.25)
        assert (len(splits.train), len(splits.val)) == (9, 3)

    def test_gives_the_same_batches_whatever_the_shards(self, tmp_path):
        reader = everything(write_shards(tmp_path / "few", per_shard=12))
        other = everything(write_shards(tmp_path / "many", per_shard=1))
        batches = [list(train_loader(one, workers=2).batches(3)) for one in (reader, other)]
        assert same(*batches)
        assert reader.fingerprint != other.fingerprint


class TestPatterns:
    @pytest.mark.parametrize(
        "pattern",
        [
            "train-{000000..000002}.tar",
            "train-00000{0..2}.tar",
            "train-{000000,000001,000002}.tar",
            "train-*.tar",
            "t*",
            "t*[0-9].tar",
            "{train-000000,train-{000001..000002}}.tar",
        ],
    )
    def test_braces_and_stars(self, tmp_path, pattern):
        write_shards(tmp_path)
        (tmp_path / "shards" / "train-folder").mkdir()
        assert shows(everything(f"wds:{tmp_path / 'shards' / pattern}"), *range(12))

    def test_one_file_and_a_file_url(self, tmp_path):
        write_shards(tmp_path)
        file = tmp_path / "shards" / "train-000002.tar"
        for argument in (file, file.as_uri()):
            assert shows(everything(f"wds:{argument}"), 10, 11)

    def test_the_order_is_the_patterns(self, tmp_path):
        write_shards(tmp_path)
        assert shows(
            everything(f"wds:{tmp_path}/shards/train-00000{{2..1}}.tar"), 10, 11, 5, 6, 7, 8, 9
        )

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a", ["a"]),
            ("{8..11}", ["8", "9", "10", "11"]),
            ("{2..0}", ["2", "1", "0"]),
            ("{08..10}x", ["08x", "09x", "10x"]),
            ("{a,b{1..2}}{x,}", ["ax", "a", "b1x", "b1", "b2x", "b2"]),
            ("{a}", ["{a}"]),
            ("{a", ["{a"]),
        ],
    )
    def test_braces_are_those_of_a_shell(self, pattern, expected):
        assert expand_braces(pattern) == expected

    def test_more_shards_than_anybody_has_are_refused(self):
        for pattern in ("{0..999999999}", "{0..999}{0..999}"):
            with pytest.raises(DataError, match="stands for more than 100,000 shards"):
                open_spec(f"wds:{pattern}.tar")

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("", "wds data is written wds:URL"),
            ("pipe:touch harm", "pipe: would run a command, which data never may"),
            ("s3://bucket/a.tar", "s3: is not read here"),
            ("nothing/*.tar", r"there is no shard nothing/\*\.tar"),
            ("shards/train-{000000..000005}.tar", r"no shard shards/train-000003\.tar"),
            ("shardz/train-000000.tar", "folder shardz does not exist"),
            ("empty", r"empty holds no files that end in \.tar"),
        ],
    )
    def test_what_is_not_there_is_told(self, tmp_path, monkeypatch, argument, message):
        write_shards(tmp_path)
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=message):
            open_spec(f"wds:{argument}")
        assert not (tmp_path / "harm").exists()


class TestLabels:
    def test_names_are_classes_in_their_order(self, tmp_path):
        spec = write(
            tmp_path / "a.tar",
            *[{"png": encoded(n), "cls": ["dog", "ant"][n % 2]} for n in range(8)],
        )
        splits = open_spec(spec)
        assert splits.class_names == ("ant", "dog")
        assert labels_of(everything(spec)) == [1, 0] * 4

    def test_of_json_are_taken_where_there_is_no_cls(self, tmp_path):
        samples = [{"png": encoded(n), "json": {"label": n % 2, "text": "x"}} for n in range(8)]
        assert labels_of(everything(write(tmp_path / "a.tar", *samples))) == [0, 1] * 4
        both = [sample | {"cls": 1 - n % 2} for n, sample in enumerate(samples)]
        assert labels_of(everything(write(tmp_path / "b.tar", *both))) == [1, 0] * 4

    def test_numbers_have_the_names_of_a_file_beside_the_shards(self, tmp_path):
        (tmp_path / "classes.txt").write_text("tench\ngoldfish\nshark\n")
        spec = write(
            tmp_path / "a.tar", *[{"png": encoded(n), "cls": 2 * (n % 2)} for n in range(8)]
        )
        splits = open_spec(spec)
        assert splits.class_names == ("tench", "goldfish", "shark")
        assert labels_of(everything(spec)) == [0, 2] * 4

    def test_names_are_counted_as_in_a_file_beside_the_shards(self, tmp_path):
        (tmp_path / "classes.txt").write_text("dog\ncat\n")
        names = [{"png": encoded(n), "cls": ("cat", "dog")[n % 2]} for n in range(8)]
        assert labels_of(everything(write(tmp_path / "a.tar", *names))) == [1, 0] * 4

    def test_that_name_no_class_are_refused(self, tmp_path):
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        spec = write(tmp_path / "a.tar", *PAIR, {"__key__": "z", "png": encoded(9), "cls": 2})
        with pytest.raises(DataError, match="has labels that name no class: 2"):
            open_spec(spec)

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            ("json", b'{"label": 1.5}'),
            ("json", b"not json"),
            ("json", b"[" * 100_000),
            ("cls", b" "),
            ("cls", b"\xff\xfe"),
        ],
    )
    def test_that_cannot_be_read_are_named(self, tmp_path, kind, content):
        spec = write_tar(tmp_path / "a.tar", ("0.png", encoded(0)), (f"0.{kind}", content))
        with pytest.raises(DataError, match=rf"a\.tar/0\.{kind} holds no label"):
            open_spec(spec)

    def test_of_both_kinds_are_refused(self, tmp_path):
        spec = write(tmp_path / "a.tar", *PAIR, {"__key__": "z", "png": encoded(9), "cls": "cat"})
        with pytest.raises(DataError, match="has both numbers and names for labels"):
            open_spec(spec)

    def test_that_are_missing_are_named_or_not_needed(self, tmp_path):
        spec = write(
            tmp_path / "a.tar", *PAIR, {"__key__": "z", "png": encoded(9), "json": {"x": 1}}
        )
        with pytest.raises(DataError, match=r"a\.tar/z has no label") as caught:
            open_spec(spec)
        assert "data.labels = false" in caught.value.hint
        splits = open_spec(spec, labels=False)
        assert (len(splits.train), len(splits.val)) == (7, 2)
        assert (splits.class_names, splits.train.labels, splits.val.labels) == ((), None, None)

    def test_of_those_evaluated_on_count_where_none_is_trained_with(self, tmp_path):
        write(tmp_path / "train.tar", *[{"png": encoded(n)} for n in range(5)])
        write(tmp_path / "val.tar", *PAIR)
        splits = open_spec(f"wds:{tmp_path}", labels=False)
        assert splits.class_names == ("0", "1")
        assert (splits.train.labels, splits.val.labels) == (None, [0, 1] * 4)


class TestFingerprint:
    @pytest.mark.parametrize("change", ["image", "order", "label", "key", "shard"])
    def test_changes_with_what_is_in_the_shards(self, tmp_path, change):
        samples = [{"__key__": f"{n}", **PAIR[n]} for n in range(8)]
        before = everything(write(tmp_path / "a" / "0.tar", *samples)).fingerprint
        if change == "image":  # the archive stays as long: its parts are rounded up to 512 bytes
            samples[3]["png"] = bytes(samples[3]["png"]) + b"\0"
        elif change == "order":
            samples[3], samples[4] = samples[4], samples[3]
        elif change == "label":
            samples[3]["cls"] = 0
        elif change == "key":
            samples[3]["__key__"] = "z"
        path = tmp_path / "b" / ("1.tar" if change == "shard" else "0.tar")
        after = everything(write(path, *samples))
        assert path.stat().st_size == (tmp_path / "a" / "0.tar").stat().st_size
        assert after.fingerprint != before


class TestMembers:
    def test_the_image_of_several_files_is_found(self, tmp_path):
        file = encoded(3)
        spec = write_tar(
            tmp_path / "a.tar",
            ("__meta__.json", b"{}"),
            ("d/0.CLS", b"1"), ("d/0.mask.png", encoded(9)), ("d/0.PNG", file), ("d/0.txt", b"x"),
            ("d/1.seg.jpg", file), ("d/1.cls", b"0"),
        )  # fmt: skip
        reader = everything(spec)
        assert shows(reader, 3, 3)
        assert labels_of(reader) == [1, 0]

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([("0.cls", b"1"), ("0.txt", b"x")], r"a\.tar/0 has 0 images, only cls, txt$"),
            ([("0.png", b""), ("0.jpg", b"")], r"a\.tar/0 has 2 images: jpg, png$"),
        ],
    )
    def test_a_sample_that_is_not_one_image_is_named(self, tmp_path, members, message):
        with pytest.raises(DataError, match=message):
            open_spec(write_tar(tmp_path / "a.tar", *members))

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_names_and_other_scripts_are_read(self, tmp_path, format):
        names = [f"{'long/' * 40}{n}" for n in range(4)] + [f"größe/鳥{n}" for n in range(4)]
        members = [
            pair for n, name in enumerate(names)
            for pair in ((f"{name}.png", encoded(n)), (f"{name}.cls", b"%d" % (n % 2)))
        ]  # fmt: skip
        reader = everything(write_tar(tmp_path / "a.tar", *members, format=format))
        assert shows(reader, *range(8))
        assert [reader.key(n) for n in (0, 7)] == [f"a.tar/{names[0]}", f"a.tar/{names[7]}"]

    def test_a_hostile_archive_writes_and_reads_nothing_outside(self, tmp_path):
        secret = tmp_path / "secret.png"
        secret.write_bytes(encoded(1))
        links = []
        for kind, target in ((tarfile.SYMTYPE, str(secret)), (tarfile.LNKTYPE, "../secret.png")):
            link = tarfile.TarInfo()
            link.type, link.linkname = kind, target
            links.append(link)
        device = tarfile.TarInfo()
        device.type = tarfile.CHRTYPE
        (tmp_path / "in").mkdir()
        outside = tmp_path / "harm.png"
        evil = [("0.png", links[0]), ("1.png", links[1]), ("2.png", device)]
        good = [
            (f"{place}{n}.{kind}", content)
            for n, place in enumerate((f"{outside.parent}/harm", "../../harm"))
            for kind, content in (("png", encoded(n)), ("cls", b"%d" % n))
        ]
        spec = write_tar(tmp_path / "in" / "a.tar", *evil, *good)
        before = sorted(path.name for path in tmp_path.iterdir())
        reader = everything(spec)
        assert shows(reader, 0, 1)  # links and devices are passed over
        assert [reader.key(n) for n in (0, 1)] == [
            f"a.tar/{outside.parent}/harm0",
            "a.tar/../../harm1",
        ]
        assert sorted(set(path.name for path in tmp_path.iterdir()) - {"cache"}) == before

    def test_a_link_in_the_place_of_an_image_is_no_image(self, tmp_path):
        (tmp_path / "secret.png").write_bytes(encoded(1))
        link = tarfile.TarInfo()
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        spec = write_tar(tmp_path / "a.tar", ("0.png", link), ("0.cls", b"1"))
        with pytest.raises(DataError, match=r"a\.tar/0 has 0 images"):
            open_spec(spec)


class TestDamage:
    @pytest.fixture
    def shard(self, tmp_path) -> Path:
        write(tmp_path / "shards" / "a.tar", *PAIR)
        return tmp_path / "shards" / "a.tar"

    @pytest.mark.parametrize("kept", [100, 700, 3000, 5000])
    def test_an_archive_that_was_cut_off_is_told(self, shard, kept):
        shard.write_bytes(shard.read_bytes()[:kept])
        with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar archive: "):
            open_spec(f"wds:{shard}")

    def test_a_damaged_header_does_not_hide_what_follows(self, shard):
        content = bytearray(shard.read_bytes())
        with tarfile.open(shard) as archive:
            place = archive.getmembers()[8].offset
        content[place + 5] ^= 0xFF
        shard.write_bytes(content)
        with pytest.raises(DataError, match=f"the header at byte {place} is damaged"):
            open_spec(f"wds:{shard}")

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, b"?"])
    def test_a_size_below_0_does_not_lead_round_in_a_circle(self, shard, kind):
        info = tarfile.TarInfo("evil.png")
        info.type, info.size = kind, -1024
        shard.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + shard.read_bytes())
        with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar archive: "):
            open_spec(f"wds:{shard}")

    def test_an_archive_without_its_last_blocks_is_whole(self, shard):
        with tarfile.open(shard) as archive:
            last = archive.getmembers()[-1]
        end = last.offset_data + (last.size + 511) // 512 * 512
        shard.write_bytes(shard.read_bytes()[:end])
        assert len(everything(f"wds:{shard}")) == 8

    @pytest.mark.parametrize("name", ["b.tar.gz", "b.tar", "b.tgz"])
    def test_a_compressed_archive_is_told_to_be_unpacked(self, tmp_path, name):
        import gzip

        write(tmp_path / "a.tar", *PAIR)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / name).write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
        for argument in (tmp_path / "b", tmp_path / "b" / name):
            with pytest.raises(DataError, match="cannot be read as a tar archive") as caught:
                open_spec(f"wds:{argument}")
            assert "compressed archives must be unpacked" in caught.value.hint

    def test_an_image_that_is_none_is_named_when_it_is_read(self, tmp_path):
        members = [
            pair
            for n in range(4)
            for pair in ((f"{n}.png", encoded(n)), (f"{n}.cls", b"%d" % (n % 2)))
        ]
        members[4] = ("2.png", b"no image")
        reader = everything(write_tar(tmp_path / "a.tar", *members))
        assert reader[1].label == 1
        with pytest.raises(DataError, match=r"a\.tar/2 cannot be read as an image"):
            reader[2]
        with pytest.raises(DataError, match=r"a\.tar/1 cannot .* more than data\.max_pixels = 119"):
            everything(f"wds:{tmp_path / 'a.tar'}", max_pixels=119)[1]

    def test_a_shard_that_vanished_is_named_when_it_is_read(self, shard):
        reader = everything(f"wds:{shard}")
        shard.unlink()
        with pytest.raises(DataError, match=r"a\.tar/000 cannot be read: No such file"):
            reader[0]


class TestIndex:
    def test_is_kept_in_the_users_cache_and_read_from_there(self, tmp_path, cache, monkeypatch):
        spec = write_shards(tmp_path)
        first = everything(spec)
        assert len(list((cache / "indices").iterdir())) == 3
        monkeypatch.setattr(
            "anykd.data.shard_index.read_members", lambda shard: pytest.fail("read")
        )
        second = everything(spec)
        assert second.fingerprint == first.fingerprint
        assert shows(second, *range(12))

    def test_of_a_shard_that_changed_is_made_anew(self, tmp_path):
        file = tmp_path / "a.tar"
        first = everything(write(file, *PAIR))
        again = [{"png": encoded(n), "cls": 1 - n % 2} for n in range(8)]
        second = everything(write(file, *again))
        assert labels_of(first) == [0, 1] * 4
        assert labels_of(second) == [1, 0] * 4
        assert second.fingerprint != first.fingerprint

    def test_that_is_damaged_is_made_anew(self, tmp_path, cache):
        spec = write_shards(tmp_path)
        first = everything(spec)
        for path, content in zip(
            (cache / "indices").iterdir(), (b"[[", b"[1]", b'[["x"]]'), strict=True
        ):
            path.write_bytes(content)
        assert everything(spec).fingerprint == first.fingerprint

    def test_that_cannot_be_written_costs_time_only(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert len(everything(write_shards(tmp_path))) == 12


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and can break off in the middle."""

    asked: list[str]
    cut: dict[str, int]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.cut.get(path.name)])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[[Path], tuple[str, type[Server]]]]:
    """A function that serves a folder over HTTP, and gives its address and what it was asked."""
    servers = []

    def start(folder: Path) -> tuple[str, type[Server]]:
        handler = type("Handler", (Server,), {"asked": [], "cut": {}})

        def create(*args: object) -> Server:
            return handler(*args, directory=str(folder))  # type: ignore[arg-type]

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), create)  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestRemote:
    def test_shards_are_fetched_once_and_told(self, tmp_path, serve, cache, capsys):
        write_shards(tmp_path)
        (tmp_path / "shards" / "classes.txt").write_text("cat\ndog\neel\n")
        url, server = serve(tmp_path)
        spec = f"wds:{url}/shards/train-{{000000..000002}}.tar"
        first = everything(spec)
        assert shows(first, *range(12))
        printed = capsys.readouterr()
        assert printed.err.startswith(f"fetching 3 of 3 shards from {url}/shards/ to {cache}")
        assert printed.out == ""
        assert open_spec(spec).class_names == ("cat", "dog", "eel")
        assert len(server.asked) == 4
        assert capsys.readouterr().err == ""
        # What was fetched is what is there.
        assert everything(f"wds:{tmp_path / 'shards'}").fingerprint == first.fingerprint

    def test_a_server_that_breaks_off_leaves_nothing_half_fetched(self, tmp_path, serve, cache):
        write_shards(tmp_path)
        url, server = serve(tmp_path / "shards")
        server.cut["train-000001.tar"] = 2000
        spec = f"wds:{url}/train-00000{{0..2}}.tar"
        with pytest.raises(
            DataError, match=r"train-000001\.tar cannot be fetched: Incomplete"
        ) as e:
            open_spec(spec)
        assert "run the same again to go on" in e.value.hint
        found = [path.name for path in (cache / "shards").rglob("*") if path.is_file()]
        assert found == ["train-000000.tar"]
        server.cut.clear()
        server.asked.clear()
        assert shows(everything(spec), *range(12))
        assert server.asked == ["/classes.txt", "/train-000001.tar", "/train-000002.tar"]

    def test_a_shard_that_is_not_there_is_told(self, tmp_path, serve):
        write_shards(tmp_path)
        url, _ = serve(tmp_path / "shards")
        with pytest.raises(DataError, match=r"000003\.tar cannot be fetched: the server says 404"):
            open_spec(f"wds:{url}/train-00000{{0..3}}.tar")

    def test_a_server_that_is_not_there_is_told(self):
        with pytest.raises(DataError, match=r"cannot be fetched: \[Errno \d+\] Connection refused"):
            open_spec("wds:http://127.0.0.1:9/a.tar")

    def test_parts_of_two_folders_are_kept_apart(self, tmp_path, serve, cache):
        write(tmp_path / "pets" / "train" / "0.tar", *PAIR)
        write(tmp_path / "pets" / "val" / "0.tar", *PAIR[:3])
        url, _ = serve(tmp_path)
        splits = open_spec(f"wds:{url}/pets/{{train,val}}/0.tar?token=1")
        assert (len(splits.train), len(splits.val)) == (8, 3)
        assert splits.name == "pets"
        assert splits.val.key(0) == "val/0.tar/000"

    def test_an_address_cannot_lead_out_of_the_cache(self, tmp_path, serve):
        url, server = serve(tmp_path)
        for path in ("/%2e%2e/%2e%2e/a.tar", "/../a.tar", "/"):
            with pytest.raises(DataError, match="is no address of a file"):
                open_spec(f"wds:{url}{path}")
        assert server.asked == []

    def test_without_a_network_what_was_fetched_is_enough(self, tmp_path, serve):
        write_shards(tmp_path)
        url, _ = serve(tmp_path / "shards")
        spec = f"wds:{url}/train-000000.tar"
        before = everything(spec).fingerprint
        shutil.rmtree(tmp_path / "shards")
        assert everything(spec).fingerprint == before
