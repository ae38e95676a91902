"""Images as the experiments want them."""

import numpy as np

import metajax as mx

Images = dict[str, np.ndarray]


def standardised(name: str, size: int) -> tuple[Images, Images]:
    """The training and the test split, ``size`` by ``size``, flat, of zero mean and unit variance.

    Both are shifted and scaled by the constants of the training split.
    """
    train = mx.data.resize(mx.data.load(name, "train"), size)
    test = mx.data.resize(mx.data.load(name, "test"), size)
    source = train["image"] / np.float32(255)
    mean = source.mean()
    std = source.std()

    def prepare(data):
        label = data["label"]
        image = data["image"].reshape(len(label), -1) / np.float32(255)
        return {"image": (image - mean) / std, "label": label}

    return prepare(train), prepare(test)
