"""The 1,797 handwritten digits that scikit-learn brings along (Alpaydin & Kaynak 1998), 8x8 enlarged to 28x28."""

import numpy as np
from PIL import Image

from experiments.data import SIDE, Dataset
from experiments.data.mnist import by_digit

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again
N_TRAIN = 1500  # the first ones; the others are for tests


def make() -> Dataset:
    """Made in a moment, without a download."""
    from sklearn.datasets import load_digits  # slow to import, and a cached dataset does not need it

    pixels, labels = load_digits(return_X_y=True)
    small = (pixels.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    # 20x20 in the middle of the field, as MNIST's digits are.
    large = [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in small]
    margin = (SIDE - 20) // 2
    images = np.pad(np.stack(large), ((0, 0), (margin, margin), (margin, margin)))
    parts = {"train": slice(None, N_TRAIN), "test": slice(N_TRAIN, None)}
    return by_digit("digits", {part: (images[some], labels[some]) for part, some in parts.items()})
