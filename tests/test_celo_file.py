"""Weights of Celo and Celo2 from files made here, right ones and such as went wrong."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx
from metajax.optim import _celo

WIDTHS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


# msgpack, as far as such files need it.


def packed(value):
    if isinstance(value, dict):
        size = len(value)
        head = bytes([0x80 | size]) if size < 16 else b"\xde" + struct.pack(">H", size)
        entries = [packed(x) for entry in value.items() for x in entry]
        return head + b"".join(entries)
    if isinstance(value, np.ndarray):
        content = packed([list(value.shape), value.dtype.name, value.tobytes()])
        return b"\xc9" + struct.pack(">Ib", len(content), 1) + content
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(packed, value))
    if isinstance(value, str):
        head = bytes([0xA0 | len(value)])
        return (
            head if len(value) < 32 else b"\xd9" + bytes([len(value)])
        ) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    return bytes([value]) if value < 128 else b"\xcd" + struct.pack(">H", value)


def rule(units, *stack):
    rng = np.random.default_rng(0)
    shapes = {f"w0__{i}": (width, units) for i, width in enumerate(WIDTHS)}
    shapes |= {"b0": (units,), "w1": (units, units), "b1": (units,)}
    shapes |= {"w2": (units, 3), "b2": (3,)}
    return {name: rng.normal(size=stack + s).astype("f4") for name, s in shapes.items()}


def celo2_tree():
    return {"ff_mod_stack": {"~": rule(8)}}


def celo_tree():
    rng = np.random.default_rng(1)
    shapes = {
        "linear": (18, 64),
        "linear_1": (18, 64),
        "linear_2": (18, 64),
        "rnn/linear": (128, 256),
        "rnn_to_controls": (64, 1),
        "step_size": (64, 1),
    }
    layers = {}
    for name, (inputs, outputs) in shapes.items():
        w = rng.normal(size=(inputs, outputs)).astype("f4") / 10
        layers[name] = {"w": w, "b": rng.normal(size=outputs).astype("f4")}
    start = {name: rng.normal(size=(1, 64)).astype("f4") for name in ("hidden", "cell")}
    return {
        "ff_mod_stack": {"~": rule(4, 1)},
        "lstm_init_state": start,
        "rnn_params": layers,
    }


TREES = {"celo": celo_tree, "celo2": celo2_tree}


def read(tmp_path, content, format):
    path = tmp_path / "theta.state"
    path.write_bytes(content)
    return mx.pretrained.read(path, format=format)


def test_celo2_is_read_into_its_place(tmp_path):
    theirs = celo2_tree()["ff_mod_stack"]["~"]
    ours = read(tmp_path, packed(celo2_tree()), "celo2")
    features = np.random.default_rng(2).normal(size=30).astype("f4")
    first = sum(
        x @ theirs[f"w0__{i}"]
        for i, x in enumerate(np.split(features, np.cumsum(WIDTHS)[:-1]))
    )
    h = np.maximum(first + theirs["b0"], 0)
    h = np.maximum(h @ theirs["w1"] + theirs["b1"], 0)
    want = (h @ theirs["w2"] + theirs["b2"])[:1]
    h = features
    for k, layer in enumerate(ours):
        h = layer["w"] @ h + layer["b"]
        h = np.maximum(h, 0) if k < 2 else h
    np.testing.assert_allclose(h, want, rtol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(ours)) == 329
    mx.optim.celo2().tx(ours)
    mx.optim.celo2_base().tx(ours)


@pytest.mark.slow
def test_celo_is_read_into_its_place(tmp_path):
    """The factor of a first step, from the authors' layout."""
    theirs = celo_tree()
    layers = theirs["rnn_params"]
    meta_params = read(tmp_path, packed(theirs), "celo")
    assert meta_params["rule"][2]["w"].shape == (2, 4)
    mx.optim.celo(num_steps=50).tx(meta_params)

    times = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
    x = np.concatenate([np.tanh(-10 * times), np.zeros(9)])

    def layer(name, x):
        return x @ layers[name]["w"] + layers[name]["b"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    u = layer("linear_2", x) + np.maximum(layer("linear_1", x), 0)
    h, c = (theirs["lstm_init_state"][name][0] for name in ("hidden", "cell"))
    i, g, f, o = np.split(layer("rnn/linear", np.concatenate([u, h])), 4)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    factor = 0.1 * np.exp(layer("step_size", sigmoid(o) * np.tanh(c)))

    weights = meta_params["schedule"]
    loss = jnp.float32(2.0)
    got, state = _celo._advance(weights, _celo._begin(weights), loss, 50)
    np.testing.assert_allclose(got, factor[0], rtol=1e-4)
    np.testing.assert_allclose(state.cell, c, rtol=1e-4)


@pytest.mark.parametrize("name", TREES)
def test_the_weights_of_the_other_are_told(name, tmp_path):
    [other] = TREES.keys() - {name}
    with pytest.raises(
        ValueError, match=f"the weights of {name}, not of {other}; .*{name}'"
    ):
        read(tmp_path, packed(TREES[name]()), other)


@pytest.mark.parametrize("name", TREES)
def test_a_file_that_ends_early_or_late_is_told(name, tmp_path):
    whole = packed(TREES[name]())
    for end in (0, 1, 2, 20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(
            ValueError, match=r"path .* is not a readable file .* ends too"
        ):
            read(tmp_path, whole[:end], name)
    with pytest.raises(ValueError, match="1 bytes are left at its end"):
        read(tmp_path, whole + b"\0", name)


def test_no_damaged_byte_does_more_than_an_error(tmp_path):
    """Every byte of the structure changed, and a few of the numbers."""
    whole = packed(celo2_tree())
    rng = np.random.default_rng(0)
    for at in [*range(60), *rng.integers(0, len(whole), 200)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        told = ""
        try:
            meta_params = read(tmp_path, bytes(damaged), "celo2")
        except ValueError as e:
            told = str(e)
        else:
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(meta_params))
        assert not told or "theta.state" in told


def changed(**own):
    """A file of Celo2 whose rule has other entries."""
    tree = celo2_tree()
    tree["ff_mod_stack"]["~"] |= own
    return packed(tree)


def without(name):
    tree = celo2_tree()
    del tree["ff_mod_stack"]["~"][name]
    return packed(tree)


def extension(kind, shape=(8,), dtype="float32", content=bytes(32)):
    inner = packed([list(shape), dtype, content])
    return b"\xc7" + bytes([len(inner), kind]) + inner


def around(value):
    """A file whose only entry is made of these bytes."""
    return b"\x81" + packed("b0") + value


B0 = "ff_mod_stack/~/b0"
DAMAGES = {
    "another rule": (packed({"ff_mod_stack": {"~": rule(4, 256)}}), "has the shape"),
    "another shape": (
        changed(b0=np.zeros(9, "f4")),
        rf"{B0} in .* has the shape \(9,\), celo2 has \(8,\)",
    ),
    "no b0": (without("b0"), rf"missing \['{B0}'\], unknown \[\]"),
    "one more": (changed(b9=np.zeros(1, "f4")), r"missing \[\], unknown \['.*b9'\]"),
    "NaN": (changed(b0=np.full(8, np.nan, "f4")), f"{B0} in .* holds NaN or infinity"),
    "infinity": (changed(b0=np.full(8, np.inf, "f4")), "holds NaN or infinity"),
    "float64": (changed(b0=np.zeros(8)), "an array of float64, where"),
    "a number": (changed(b0=3), f"{B0} is no array"),
    "a text": (changed(b0="x"), f"{B0} is no array"),
    "no dict": (packed("x"), "it holds no dict"),
    "a key that is no name": (b"\x81\x01\x01", "the key 1 is no name"),
    "a key twice": (
        b"\x82" + 2 * (packed("a") + b"\x01"),
        "the key 'a' .*occurs twice",
    ),
    "two of one path": (
        packed({"a": {"b": np.zeros(1, "f4")}, "a/b": np.zeros(1, "f4")}),
        "a/b occurs twice",
    ),
    "another extension": (around(extension(kind=5)), "an extension of type 5"),
    "fewer bytes than its shape": (around(extension(1, content=bytes(31))), "31 bytes"),
    "a shape of many": (around(extension(1, shape=(65535,) * 9)), "with 32 bytes"),
    "an array of two": (
        around(b"\xc7\x03\x01" + packed([1, 2])),
        "does not consist of shape, dtype and bytes",
    ),
    "more than there is": (around(b"\xc6\xff\xff\xff\xff"), "4294967295 bytes are due"),
    "deep": (b"\x81\xa1a" * 50 + b"\x01", "nested more than 8 deep"),
    "deep lists": (around(b"\x91" * 5000), "nested more than 8 deep"),
    "a float": (around(b"\xcb" + bytes(8)), "a value of the kind 0xcb at byte 4"),
    "no text": (b"\x81\xa1\xff\x01", "a name is no text"),
    "a pickle": (b"\x80\x04\x95", "is not a readable file of weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_told(name, tmp_path):
    content, message = DAMAGES[name]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, "celo2")


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "theta.state"
    with path.open("wb") as f:
        f.truncate(2**40)  # of holes
    with pytest.raises(
        ValueError, match="1099511627776 bytes, which no weights of Celo"
    ):
        mx.pretrained.read(path, "celo")


def test_no_file_and_no_format(tmp_path):
    with pytest.raises(FileNotFoundError):
        mx.pretrained.read(tmp_path / "no.state", "celo")
    with pytest.raises(
        ValueError, match="format must be 'celo' or 'celo2', got 'velo'"
    ):
        mx.pretrained.read(tmp_path / "no.state", "velo")


def test_json_is_no_such_file(tmp_path):
    content = Path(__file__).with_name("celo2_vectors.json").read_bytes()
    assert json.loads(content)
    with pytest.raises(ValueError, match="is not a readable file of weights"):
        read(tmp_path, content, "celo2")
