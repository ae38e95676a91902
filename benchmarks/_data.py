"""Images as the experiments want them."""

import numpy as np

import metajax as mx


def standardised(name: str, size: int) -> tuple[dict, dict]:
    """The training and the test split, ``size`` by ``size``, flat, of zero mean and unit variance.

    Both are shifted and scaled by the constants of the training split.
    """
    source = mx.data.resize(mx.data.load(name, "train"), size)["image"] / np.float32(255)
    mean, std = source.mean(), source.std()

    def prepare(split):
        data = mx.data.resize(mx.data.load(name, split), size)
        image = (data["image"].reshape(len(data["label"]), -1) / np.float32(255) - mean) / std
        return {"image": image, "label": data["label"]}

    return prepare("train"), prepare("test")
