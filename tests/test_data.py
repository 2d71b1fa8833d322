"""Laws of the datasets: shape, determinism, caching, and one clear error for whatever goes wrong with an archive."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import data
from experiments.data import archives, mnist, omniglot
from experiments.data import glyphs as drawn
from experiments.data import omniglot_published as published
from experiments.data.splits import split_classes

ROOT = Path(__file__).resolve().parent.parent
REAL = os.environ.get("GTL_DATA_DIR")  # before the fixtures take it away
BACKGROUND, EVALUATION = "images_background.zip", "images_evaluation.zip"


# --- synthetic archives and a real server ---------------------------------------------------------


def png(shade: int) -> bytes:
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (10, 10, 10 + shade, 60))  # black ink on white paper
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def drawings(archive: str, alphabets: dict[str, int]) -> dict[str, bytes]:
    stem, shades = archive.removesuffix(".zip"), iter(range(5, 80))
    return {
        f"{stem}/{alphabet}/character{number:02}/{number:04}_{drawer:02}.png": png(next(shades))
        for alphabet, count in alphabets.items()
        for number in range(1, count + 1)
        for drawer in range(1, 4)
    }


def zipped(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date, so that the checksum is fixed
    return buffer.getvalue()


def content_digest(members: dict[str, bytes]) -> str:
    lines = (f"{name}\0{hashlib.sha256(members[name]).hexdigest()}\n" for name in sorted(members))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data folder of our own, no GTL_DATA_DIR, no proxy between us and 127.0.0.1."""
    monkeypatch.setattr(data, "FOLDER", tmp_path / "data")
    monkeypatch.setattr(archives, "RETRIES", 1)
    monkeypatch.delenv("GTL_DATA_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield tmp_path / "data"
    data.load.cache_clear()  # nobody else may get what was made here


def load(name: str) -> data.Dataset:
    """As a process that has not loaded it before."""
    data.load.cache_clear()
    return data.load(name)


@pytest.fixture
def members(monkeypatch):
    """The images of a small Omniglot, by archive: 3 background classes, 2 evaluation classes, 3 drawers."""
    made = {
        BACKGROUND: drawings(BACKGROUND, {"Alpha": 2, "Beta": 1}),
        EVALUATION: drawings(EVALUATION, {"Gamma": 2}),
    }
    digests = {name: (hashlib.md5(zipped(images)).hexdigest(), content_digest(images)) for name, images in made.items()}
    monkeypatch.setattr(omniglot, "ARCHIVES", digests)
    return made


@pytest.fixture
def shelf(home, members, tmp_path, monkeypatch):
    """A folder with the small archives that GTL_DATA_DIR points at."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name, images in members.items():
        (folder / name).write_bytes(zipped(images))
    monkeypatch.setenv("GTL_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def server(home, members, monkeypatch):
    """Serves the small archives; `broken` is how many more answers break off half-way, `asked` what was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            server.asked.append(name)
            if server.missing:
                return self.send_error(404)
            content = server.archives[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            breaks, server.broken = server.broken > 0, server.broken - 1
            self.wfile.write(content[: len(content) // 2] if breaks else content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.broken, server.missing = [], 0, False
    server.archives = {name: zipped(images) for name, images in members.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(omniglot, "URL", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# For a process of its own, what the fixtures do in this one.
OURS = """
import pathlib
from experiments import data
from experiments.data import omniglot
data.FOLDER, omniglot.ARCHIVES = pathlib.Path({home!r}), {archives!r}
"""
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


def real(archive: str) -> str:
    """The folder of a real archive, if there is one in GTL_DATA_DIR or beside the project."""
    places = [path for place in (REAL, ROOT.parent / "shared") if place for path in Path(place).glob(f"**/{archive}")]
    if not places:
        pytest.skip("needs the real archives: set GTL_DATA_DIR")
    return str(places[0].parent)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def same(one: data.Dataset, other: data.Dataset) -> bool:
    return one.digest == other.digest and torch.equal(one.images, other.images)


# --- omniglot_published ---------------------------------------------------------------------------


def test_published_split_mixes_alphabets_and_keeps_the_turns_of_a_character_together(monkeypatch):
    """Five characters of two alphabets, two drawings each, of which three characters are to learn from."""
    images = torch.arange(10 * 28 * 28).view(10, 28, 28).to(torch.uint8)
    names = [("A", "a"), ("A", "b"), ("A", "c"), ("B", "d"), ("B", "e")]
    few = data.Dataset.of("omniglot", images, [2] * 5, names, [False] * 3 + [True] * 2)
    monkeypatch.setattr(published, "load", lambda name: few)
    monkeypatch.setattr(published, "N_BACKGROUND", 3)
    dataset = published.make()
    assert dataset.examples.shape == (5 * 4, 2, 28, 28) and dataset.evaluation.tolist() == [False] * 12 + [True] * 8
    upright = dataset.examples[::4]
    assert sorted(map(bytes, upright.numpy())) == sorted(map(bytes, few.examples.numpy()))
    for turn in range(4):
        assert torch.equal(dataset.examples[turn::4], upright.rot90(turn, (-2, -1)))
    split = split_classes(dataset, 0)
    assert split["test"].tolist() == list(range(12, 20))
    assert all(len(classes) == 4 * len({c // 4 for c in classes.tolist()}) for classes in split.values())


def test_the_real_published_split(home, monkeypatch):
    monkeypatch.setenv("GTL_DATA_DIR", real(BACKGROUND))
    dataset = load("omniglot_published")
    assert dataset.examples.shape == (1623 * 4, 20, 28, 28)
    assert int((~dataset.evaluation).sum()) == 4800
    assert not {*dataset.alphabets[:4800]} & {*dataset.alphabets[4800:]}


# --- glyphs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glyphs():
    return drawn.make()


def test_glyphs_have_the_shape_of_omniglot(glyphs):
    classes = len(glyphs.examples)
    assert glyphs.examples.shape == (classes, 20, 28, 28) and glyphs.examples.dtype == torch.uint8
    assert classes >= 500 and len(set(glyphs.alphabets)) >= 20
    assert len(glyphs.alphabets) == len(glyphs.characters) == len(glyphs.evaluation) == classes
    assert 0.35 <= glyphs.evaluation.float().mean() <= 0.45
    assert not (glyphs.evaluation[:-1] & ~glyphs.evaluation[1:]).any()  # background first


def test_alphabets_are_whole_and_characters_unique(glyphs):
    sides = {(alphabet, bool(test)) for alphabet, test in zip(glyphs.alphabets, glyphs.evaluation, strict=True)}
    assert len(sides) == len(set(glyphs.alphabets))
    assert len(set(glyphs.characters)) == len(glyphs.characters)
    assert not {"Α", "А", "с"} & set(glyphs.characters)  # Greek and Cyrillic twins of Latin letters  # noqa: RUF001


def test_no_two_classes_and_no_two_drawings_are_equal(glyphs):
    drawn = {bytes(image.numpy()) for image in glyphs.examples.flatten(0, 1)}
    assert len(drawn) == len(glyphs.examples) * 20


def test_every_drawing_has_ink_and_paper(glyphs):
    assert glyphs.examples.amax((-1, -2)).min() > 200
    assert glyphs.examples.amin((-1, -2)).max() == 0
    share = glyphs.examples.float().mean() / 255
    assert 0.06 < share < 0.11  # Omniglot at 28x28: 0.084


def test_a_drawer_has_one_hand(glyphs):
    """Drawers differ consistently: the height of a drawing is predicted by its drawer over different characters."""
    rows = (glyphs.examples > 128).any(-1).sum(-1).float()
    rows = rows - rows.mean(1, keepdim=True)
    odd, even = rows[::2].mean(0), rows[1::2].mean(0)
    assert torch.corrcoef(torch.stack([odd, even]))[0, 1] > 0.9


def test_one_example_says_something_but_not_all(glyphs):
    """Five-way one-shot by nearest pixels is far from chance (20 %) and far from perfect, as on Omniglot (43 %)."""
    generator = torch.Generator().manual_seed(0)
    pixels = glyphs.examples[glyphs.evaluation].flatten(2).float()
    hits = 0.0
    for _ in range(400):
        classes = torch.randperm(len(pixels), generator=generator)[:5]
        support, query = torch.randperm(20, generator=generator)[:2]
        nearest = torch.cdist(pixels[classes, query], pixels[classes, support]).argmin(1)
        hits += (nearest == torch.arange(5)).float().mean().item() / 400
    assert 0.35 < hits < 0.75


def test_rendering_does_not_depend_on_threads_or_global_randomness(glyphs):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        torch.rand(3)
        assert drawn.make().digest == glyphs.digest
    finally:
        torch.set_num_threads(threads)


def test_a_missing_font_is_named(home, monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(data.DataError, match=r"DejaVuSans\.ttf is missing: install"):
        load("glyphs")


# --- the cache ------------------------------------------------------------------------------------


def test_glyphs_are_drawn_once(home, glyphs, monkeypatch):
    monkeypatch.setattr(drawn, "make", lambda: glyphs)
    assert same(load("glyphs"), glyphs)
    monkeypatch.setattr(drawn, "make", lambda: pytest.fail("drawn again"))
    again = load("glyphs")
    assert same(again, glyphs) and again.characters == glyphs.characters
    assert torch.equal(again.evaluation, glyphs.evaluation)
    assert files(home) == ["glyphs.safetensors"]


def test_cache_files_are_reproducible(shelf, home):
    load("omniglot")
    first = (home / "omniglot.safetensors").read_bytes()
    (home / "omniglot.safetensors").unlink()
    load("omniglot")
    assert (home / "omniglot.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    "harm", [lambda raw: b"", lambda raw: raw[:-100], lambda raw: raw[:-1] + b"?", lambda raw: b"x" * 99]
)
def test_a_damaged_cache_is_made_again(shelf, home, harm):
    path = home / "omniglot.safetensors"
    good, whole = load("omniglot"), path.read_bytes()
    path.write_bytes(harm(whole))
    assert same(load("omniglot"), good)
    assert path.read_bytes() == whole


def test_a_cache_of_another_version_is_made_again(shelf, home, monkeypatch):
    good, whole = load("omniglot"), (home / "omniglot.safetensors").read_bytes()
    monkeypatch.setattr(omniglot, "VERSION", omniglot.VERSION + 1)
    assert same(load("omniglot"), good)
    assert (home / "omniglot.safetensors").read_bytes() != whole


def test_a_file_that_the_disk_has_no_room_for_leaves_no_half_cache(shelf, home):
    """A process that may write 1000 bytes to a file: writing ends in the middle, as on a full disk."""
    script = f"""{OURS.format(home=str(home), archives=omniglot.ARCHIVES)}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    data.load("omniglot")
except data.DataError as error:
    print(error)
"""
    here = HERE | {"GTL_DATA_DIR": str(shelf)}
    done = subprocess.run([sys.executable, "-c", script], env=here, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"cannot write \S+omniglot.safetensors \(.+\): free space, or make .+ writable\n", done.stdout)
    assert files(home) == []


def test_two_processes_can_start_together(shelf, home):
    script = OURS.format(home=str(home), archives=omniglot.ARCHIVES) + "print(data.load('omniglot').digest)"
    start = dict(env=HERE | {"GTL_DATA_DIR": str(shelf)}, stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, "-c", script], **start) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0] == printed[1] == f"{load('omniglot').digest}\n"
    assert files(home) == ["omniglot.safetensors"]


# --- Omniglot from a folder -----------------------------------------------------------------------


def test_small_omniglot(shelf):
    dataset = load("omniglot")
    assert dataset.examples.shape == (5, 3, 28, 28) and dataset.examples.dtype == torch.uint8
    assert dataset.alphabets == ("Alpha", "Alpha", "Beta", "Gamma", "Gamma")
    assert dataset.characters == ("character01", "character02", "character01", "character01", "character02")
    assert dataset.evaluation.tolist() == [False, False, False, True, True]
    assert dataset.examples[..., 5:10, 3].min() == 255  # the black bar is ink,
    assert dataset.examples[..., 20:, :].max() == 0  # the white rest is paper
    widths = (dataset.examples[:3] > 128).any(-2).sum(-1).flatten()
    assert (widths.diff() >= 0).all() and widths[-1] > widths[0]  # drawers and characters in order


def test_repacked_archives_are_accepted(shelf, members):
    expected = load("omniglot").digest
    for name, images in members.items():
        with zipfile.ZipFile(shelf / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir(name.removesuffix(".zip"))
            for member in reversed(images):
                archive.writestr(member, images[member])
                folder, _, file = member.rpartition("/")  # what macOS adds to every file
                archive.writestr(f"__MACOSX/{folder}/._{file}", b"attributes")
    (data.FOLDER / "omniglot.safetensors").unlink()
    assert load("omniglot").digest == expected


def test_the_folder_may_be_read_only(shelf, home):
    before = {path: path.stat().st_mtime_ns for path in shelf.iterdir()}
    shelf.chmod(0o555)
    try:
        load("omniglot")
    finally:
        shelf.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in shelf.iterdir()} == before


def test_a_missing_archive_is_named_and_not_downloaded(shelf, server):
    (shelf / EVALUATION).unlink()
    with pytest.raises(data.DataError, match=f"GTL_DATA_DIR has no {EVALUATION}: put it into"):
        load("omniglot")
    assert server.asked == []


def test_a_truncated_archive(shelf, home):
    whole = (shelf / BACKGROUND).read_bytes()
    (shelf / BACKGROUND).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match=f"{BACKGROUND} is not a whole zip archive.*get it again"):
        load("omniglot")
    assert files(home) == []


def test_a_flipped_bit(shelf):
    raw = bytearray((shelf / BACKGROUND).read_bytes())
    raw[150] ^= 1
    (shelf / BACKGROUND).write_bytes(raw)
    with pytest.raises(data.DataError, match="is not a whole zip archive"):
        load("omniglot")


@pytest.mark.parametrize("change", ["tampered", "renamed", "added", "removed"])
def test_other_images_are_refused(shelf, members, change):
    images = dict(members[EVALUATION])
    first = next(iter(images))
    if change == "tampered":
        images[first] = png(79)
    elif change == "renamed":
        images[first.replace("Gamma", "Delta")] = images.pop(first)
    elif change == "added":
        images[first.replace("_01", "_04")] = images[first]
    else:
        del images[first]
    (shelf / EVALUATION).write_bytes(zipped(images))
    with pytest.raises(data.DataError, match=f"{EVALUATION} are not those of the official archive"):
        load("omniglot")


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "images/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_an_entry_that_points_outside_is_refused(shelf, members, name, tmp_path):
    (shelf / BACKGROUND).write_bytes(zipped(members[BACKGROUND] | {name: b"!"}))
    with pytest.raises(data.DataError, match="points outside"):
        load("omniglot")
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_a_bomb_is_refused_before_it_is_unpacked(shelf, monkeypatch):
    """An archive of 100 kB that would unpack to 100 MB; nothing of it is read."""
    with zipfile.ZipFile(shelf / BACKGROUND, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/bomb.png", bytes(100_000_000))
    assert (shelf / BACKGROUND).stat().st_size < 500_000
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(data.DataError, match=f"{BACKGROUND} unpacks to more than 20,000,000 bytes"):
        load("omniglot")


# --- Omniglot from the network --------------------------------------------------------------------


def test_download_once(server, home):
    dataset = load("omniglot")
    assert dataset.examples.shape == (5, 3, 28, 28)
    assert server.asked == [BACKGROUND, EVALUATION]
    assert files(home) == [BACKGROUND, EVALUATION, "omniglot.safetensors"]
    (home / "omniglot.safetensors").unlink()
    assert same(load("omniglot"), dataset)
    assert server.asked == [BACKGROUND, EVALUATION]


def test_a_connection_that_breaks_once_is_survived(server, home):
    server.broken = 1
    assert load("omniglot").examples.shape == (5, 3, 28, 28)
    assert server.asked == [BACKGROUND, BACKGROUND, EVALUATION]


def test_a_connection_that_always_breaks(server, home):
    server.broken = 99
    with pytest.raises(
        data.DataError, match=rf"cannot download {omniglot.URL}{BACKGROUND} .*point GTL_DATA_DIR at"
    ) as caught:
        load("omniglot")
    assert caught.value.__cause__ is not None
    assert len(server.asked) == 1 + archives.RETRIES
    assert files(home) == []


def test_an_archive_that_is_not_there(server, home, monkeypatch):
    monkeypatch.setattr(archives, "RETRIES", 0)
    server.missing = True
    with pytest.raises(data.DataError, match=r"cannot download .*\(HTTPError\)"):
        load("omniglot")
    assert files(home) == []


def test_an_archive_with_another_checksum(server, home, members, monkeypatch):
    monkeypatch.setattr(archives, "RETRIES", 0)
    members[BACKGROUND][next(iter(members[BACKGROUND]))] = png(79)
    server.archives[BACKGROUND] = zipped(members[BACKGROUND])
    with pytest.raises(data.DataError, match="cannot download"):
        load("omniglot")
    assert files(home) == []


def test_no_network(server, home, monkeypatch):
    monkeypatch.setattr(archives, "RETRIES", 0)
    monkeypatch.setattr(omniglot, "URL", "http://127.0.0.1:9/")  # the discard port: nobody listens
    with pytest.raises(data.DataError, match=r"cannot download .*\(ConnectionError\): check the network"):
        load("omniglot")
    assert files(home) == []


def test_full_disk_during_the_download(server, home, monkeypatch):
    def full(self, url, output_file, pooch, check_only=False):
        Path(output_file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(data.DataError, match=r"\(No space left on device\).*free disk space"):
        load("omniglot")
    assert files(home) == []


# --- MNIST ---------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    """A file of the format: two zeros, the type (8: uint8), the number of dimensions, each dimension, the values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def digits(home, monkeypatch):
    """A small MNIST, by archive: two of every digit to train on, one to test on; image i is all grey of shade i."""
    parts = {"train": [*range(10), *reversed(range(10))], "t10k": list(range(10))}
    made = {}
    for part, labels in parts.items():
        shades = np.arange(len(labels), dtype=np.uint8)[:, None, None]
        made[f"{part}-images-idx3-ubyte.gz"] = idx(np.broadcast_to(shades, (len(labels), 28, 28)))
        made[f"{part}-labels-idx1-ubyte.gz"] = idx(np.array(labels, np.uint8))
    archived = {name: gzip.compress(content, mtime=0) for name, content in made.items()}
    digests = {
        n: (hashlib.md5(archived[n]).hexdigest(), hashlib.md5(content).hexdigest()) for n, content in made.items()
    }
    monkeypatch.setattr(mnist, "ARCHIVES", digests)
    return archived


@pytest.fixture
def digit_shelf(digits, tmp_path, monkeypatch):
    """A folder in the folder that GTL_DATA_DIR points at, with the small archives."""
    folder = tmp_path / "shelf" / "mnist"
    folder.mkdir(parents=True)
    for name, content in digits.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("GTL_DATA_DIR", str(folder.parent))
    return folder


def test_small_mnist(digit_shelf):
    dataset = load("mnist")
    assert dataset.counts == (2,) * 10 + (1,) * 10 and dataset.images.shape == (30, 28, 28)
    images, labels = dataset.of_alphabet("train")
    assert labels.tolist() == sorted(2 * list(range(10)))
    assert images[:, 0, 0].tolist() == [shade for digit in range(10) for shade in (digit, 19 - digit)]
    images, labels = dataset.of_alphabet("test")
    assert images[:, 5, 5].tolist() == labels.tolist() == list(range(10))
    assert dataset.evaluation.tolist() == [False] * 10 + [True] * 10
    assert same(load("mnist"), dataset)  # from the cache
    with pytest.raises(ValueError, match="do not have equally many"):
        _ = dataset.examples


def test_archives_that_were_packed_again_are_accepted(digit_shelf, digits):
    expected = load("mnist").digest
    (data.FOLDER / "mnist.safetensors").unlink()
    for name, content in digits.items():
        (digit_shelf / name).write_bytes(gzip.compress(gzip.decompress(content), compresslevel=1, mtime=99))
    assert load("mnist").digest == expected


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "is not a whole gzip archive"),
        (lambda raw: b"<html>not found</html>", "is not a whole gzip archive"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1] + b"?"), "is not that of the official archive"),
    ],
)
def test_a_bad_archive_of_digits(digit_shelf, home, harm, message):
    path = digit_shelf / "train-images-idx3-ubyte.gz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(data.DataError, match=rf"{path.name} {message}.*get it again"):
        load("mnist")
    assert files(home) == []


def test_a_bomb_of_digits_is_not_unpacked(digit_shelf):
    path = digit_shelf / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(400_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(data.DataError, match=rf"{path.name} is not that of the official archive"):
        load("mnist")
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


def test_a_missing_archive_of_digits_is_named(digit_shelf):
    (digit_shelf / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError, match=r"GTL_DATA_DIR has no t10k-labels-idx1-ubyte\.gz: put it into"):
        load("mnist")


def test_mnist_is_downloaded_once_though_a_connection_breaks(server, digits, home, monkeypatch):
    monkeypatch.setattr(mnist, "URL", omniglot.URL)
    server.archives, server.broken = digits, 1
    dataset = load("mnist")
    assert server.asked == [next(iter(digits)), *mnist.ARCHIVES]
    (home / "mnist.safetensors").unlink()
    assert same(load("mnist"), dataset) and len(server.asked) == 5


def test_the_real_mnist(home, monkeypatch):
    monkeypatch.setenv("GTL_DATA_DIR", real("train-images-idx3-ubyte.gz"))
    dataset = load("mnist")
    assert sum(dataset.counts[:10]) == 60_000 and sum(dataset.counts[10:]) == 10_000
    assert dataset.counts[1] == 6742 and dataset.counts[15] == 892  # ones to train on, fives to test on


def test_the_bundled_digits():
    dataset = load("digits")
    assert sum(dataset.counts[:10]) == 1500 and sum(dataset.counts[10:]) == 297
    assert dataset.images.shape == (1797, 28, 28) and dataset.images.amax() == 255
    edge = torch.cat([dataset.images[:, :4].flatten(), dataset.images[:, :, 24:].flatten()])
    assert not edge.any()  # digits lie in the middle 20x20
    images, labels = dataset.of_alphabet("train")
    means = torch.stack([images[labels == digit].float().mean(0) for digit in range(10)])
    asked, answers = dataset.of_alphabet("test")
    nearest = torch.cdist(asked.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == answers).float().mean() > 0.8  # they are digits, and their labels are theirs


# --- the rest -------------------------------------------------------------------------------------


def test_an_unknown_name():
    with pytest.raises(
        data.DataError, match="unknown dataset 'emnist': use one of glyphs, omniglot, omniglot_published, digits, mnist"
    ):
        load("emnist")


def test_the_real_omniglot(home, monkeypatch):
    monkeypatch.setenv("GTL_DATA_DIR", real(BACKGROUND))
    dataset = load("omniglot")
    assert dataset.examples.shape == (964 + 659, 20, 28, 28)
    assert dataset.evaluation.tolist() == [False] * 964 + [True] * 659
    assert len(set(dataset.alphabets[:964])) == 30 and len(set(dataset.alphabets[964:])) == 20
    assert 0.05 < dataset.examples.float().mean() / 255 < 0.12
