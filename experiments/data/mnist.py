"""Handwritten digits: MNIST (LeCun, Cortes and Burges 1998), 60,000 to train on and 10,000 to test on, as they are."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch

from experiments.data import SIDE, DataError, Dataset
from experiments.data.archives import find

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # PyTorch's mirror: the authors' own server turns programs away
ARCHIVES = {  # md5 of the official archive, for downloads; and of the file in it, which a repacked archive shares
    "train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
HEADER = {"idx3": 16, "idx1": 8}  # bytes before the data
MAX_BYTES = 16 + 60_000 * SIDE**2  # of the largest file


def make() -> Dataset:
    """DataError if an archive is missing, broken or not MNIST, or if its download fails."""
    raw = {archive: _content(find(URL, archive, md5), content) for archive, (md5, content) in ARCHIVES.items()}
    train_images, train_labels, test_images, test_labels = (
        np.frombuffer(content, np.uint8, offset=HEADER[archive.split("-")[2]]) for archive, content in raw.items()
    )
    return by_digit("mnist", {"train": (train_images, train_labels), "test": (test_images, test_labels)})


def by_digit(name: str, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """A dataset of digits from the images [N * 784] or [N, 28, 28] and labels [N] of ``train`` and ``test``, in which
    digits stay in the order of their part."""
    images, counts = [], []
    for pictures, labels in parts.values():
        images.append(pictures.reshape(-1, SIDE, SIDE)[labels.argsort(kind="stable")])
        counts += np.bincount(labels, minlength=10).tolist()
    classes = [(part, str(digit)) for part in parts for digit in range(10)]
    evaluation = [part == "test" for part, _ in classes]
    return Dataset.of(name, torch.from_numpy(np.concatenate(images)), counts, classes, evaluation)


def _content(path: Path, md5: str) -> bytes:
    try:
        with gzip.open(path) as archive:
            content = archive.read(MAX_BYTES)  # what follows is never unpacked, and its lack makes another digest
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip archive ({error}): remove it and get it again") from error
    if hashlib.md5(content).hexdigest() != md5:
        raise DataError(f"the content of {path} is not that of the official archive: remove it and get it again")
    return content
