"""Images as the experiments want them."""

from typing import Any

import numpy as np

import metajax as mx


def standardised(name: str, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training and the test split, ``size`` by ``size``, flat, of zero mean and unit variance.

    Both are shifted and scaled by the constants of the training split.
    """
    train = mx.data.resize(mx.data.load(name, "train"), size)
    test = mx.data.resize(mx.data.load(name, "test"), size)
    source = train["image"] / np.float32(255)
    mean = source.mean()
    std = source.std()

    def prepare(data):
        flat = data["image"].reshape(len(data["label"]), -1)
        image = (flat / np.float32(255) - mean) / std
        return {"image": image, "label": data["label"]}

    return prepare(train), prepare(test)
