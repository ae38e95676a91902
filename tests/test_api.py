"""The public surface: flat, documented, each name with a runnable example."""

import doctest
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from public import FUNCTIONS

import metajax as mx
from metajax import io


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name):
    doc = FUNCTIONS[name].__doc__
    assert doc, f"{name} has no docstring"
    assert doctest.DocTestParser().get_examples(doc), f"{name} has no example"


@pytest.mark.parametrize("name", mx.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(mx, name)
    assert isinstance(value, dict) or value.__doc__


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_saving_and_loading(tmp_path, suffix):
    opt = mx.optim.lstm(hidden=(3,))
    params = opt.init(jax.random.key(0))
    path = tmp_path / "a" / f"l2l.{suffix}"
    mx.save(path, params)
    again = mx.load(path, like=jax.eval_shape(opt.init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        mx.save(path, jax.tree.map(lambda x: x * np.nan, params))
    assert path.read_bytes() == before, "a good file is not lost to a bad state"
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_python_numbers_are_loaded_and_fractions_not_cut_off(tmp_path):
    mx.save(tmp_path / "a.npz", {"rate": 0.5})
    assert mx.load(tmp_path / "a.npz", like={"rate": 0.1}) == {"rate": 0.5}
    with pytest.raises(ValueError, match=r"rate in .* is float64, like has int32"):
        mx.load(tmp_path / "a.npz", like={"rate": jnp.zeros((), jnp.int32)})


def test_safetensors_are_what_others_read(tmp_path):
    mx.save(
        tmp_path / "a.safetensors",
        {"a": np.arange(6.0).reshape(2, 3).T, "b": [np.float32(2)]},
    )
    read = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert read["a"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert read["b/0"] == 2


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_dtypes_and_names_that_numpy_does_not_know_or_keeps_for_itself(
    tmp_path, suffix
):
    tree = {
        "file": jnp.arange(3.0, dtype=jnp.bfloat16),
        "allow_pickle": jnp.float16(2),
        "n": jnp.arange(2),
    }
    mx.save(tmp_path / f"a.{suffix}", tree)
    again = mx.load(tmp_path / f"a.{suffix}", like=tree)
    assert jax.tree.map(lambda x: (x.dtype, x.tolist()), again) == jax.tree.map(
        lambda x: (x.dtype, x.tolist()), tree
    )
    eight = {"x": jnp.arange(3.0).astype(jnp.float8_e4m3fn)}
    if suffix == "safetensors":
        with pytest.raises(
            ValueError,
            match=r"float8_e4m3fn, which safetensors does not read back; write",
        ):
            mx.save(tmp_path / f"b.{suffix}", eight)
    else:
        mx.save(tmp_path / f"b.{suffix}", eight)
        assert mx.load(tmp_path / f"b.{suffix}", like=eight)["x"].tolist() == [0, 1, 2]


def write(path, value):
    """A file as another program may have written it, without what `metajax.save` refuses."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({"a": value}, path)
    else:
        np.savez(path, a=value)


# What is in a file, the dtype wanted, and what comes of it.
CASTS = {
    "bfloat16 into float16": (jnp.bfloat16(0.1), "float16", 0.10009765625),
    "float16 into bfloat16": (np.float16(0.1), "bfloat16", 0.10009765625),
    "float64 into float32": (np.float64(0.1), "float32", float(np.float32(0.1))),
    "0 into float16": (np.float32(0.0), "float16", 0.0),
    "float into complex": (np.float32(0.5), "complex64", 0.5 + 0j),
    "the largest uint8": (np.int32(255), "uint8", 255),
    "the smallest int32": (np.int64(-(2**31)), "int32", -(2**31)),
    "uint64 into int8": (np.uint64(127), "int8", 127),
    "the last integer before a gap": (np.int32(2**24), "float32", 2.0**24),
    "bool into int": (np.bool_(True), "int32", 1),
    "one into bool": (np.int32(1), "bool", True),
}
LOSSES = {
    "300 into uint8": (
        np.int32(300),
        "uint8",
        "300 to 300, like has uint8, .* from 0 to 255",
    ),
    "-1 into uint8": (np.int8(-1), "uint8", "-1 to -1"),
    "200 into int8": (np.uint8(200), "int8", "200 to 200"),
    "2**40 into int32": (np.int64(2**40), "int32", "1099511627776, like has int32"),
    "2**64 - 1 into int32": (np.uint64(2**64 - 1), "int32", "18446744073709551615"),
    "2 into bool": (np.int32(2), "bool", "from 0 to 1"),
    "2**24 + 1 into float32": (np.int32(2**24 + 1), "float32", "16777217"),
    "float into int": (
        np.float32(1.0),
        "int32",
        "float32, like has int32, which would cut it",
    ),
    "bfloat16 into int": (jnp.bfloat16(1.0), "int32", "bfloat16, like has int32"),
    "float into bool": (np.float32(1.0), "bool", "float32, like has bool"),
    "complex into float": (np.complex64(1j), "float32", "complex64, like has float32"),
    "1e300 into float32": (
        np.float64(1e300),
        "float32",
        "float64 and too large for float32",
    ),
    "70000 into float16": (
        np.float32(70000),
        "float16",
        "float32 and too large for float16",
    ),
    "1e-8 into float16": (
        np.float32(1e-8),
        "float16",
        "float32 and too small for float16",
    ),
    "1e-300 into float32": (
        np.float64(1e-300),
        "float32",
        "float64 and too small for float32",
    ),
    "NaN": (np.float32(np.nan), "float32", "NaN or infinity"),
    "infinity": (np.float64(-np.inf), "float32", "NaN or infinity"),
    "complex NaN": (np.complex64(np.nan), "complex64", "NaN or infinity"),
    "NaN of bfloat16": (jnp.bfloat16(np.nan), "bfloat16", "NaN or infinity"),
}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("case", CASTS)
def test_loading_into_another_dtype(tmp_path, case, suffix):
    value, dtype, want = CASTS[case]
    path = tmp_path / f"a.{suffix}"
    mx.save(path, {"a": np.full(2, value)})
    got = mx.load(path, like={"a": jax.ShapeDtypeStruct((2,), dtype)})["a"]
    assert got.dtype == dtype
    assert got.tolist() == [want, want]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("case", LOSSES)
def test_loading_loses_nothing(tmp_path, case, suffix):
    value, dtype, message = LOSSES[case]
    path = tmp_path / f"file.{suffix}"
    write(path, np.full(2, value))
    like = {"a": jax.ShapeDtypeStruct((2,), dtype)}
    with pytest.raises(ValueError, match=f"a in .*file.{suffix} .*{message}"):
        mx.load(path, like)


def test_int64_is_loaded_whole_where_jax_knows_it(x64, tmp_path):
    for suffix in ("npz", "safetensors"):
        mx.save(tmp_path / f"a.{suffix}", {"a": np.int64(2**40)})
        got = mx.load(tmp_path / f"a.{suffix}", like={"a": np.int64(0)})["a"]
        assert got.dtype == np.int64
        assert int(got) == 2**40


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int4", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_npz_keeps_the_dtypes_that_numpy_does_not_know(tmp_path, dtype, shape):
    array = jnp.ones(shape, dtype)
    mx.save(tmp_path / "a.npz", array)
    [kept] = io.load_arrays(tmp_path / "a.npz").values()
    assert kept.dtype == dtype
    assert kept.shape == shape
    assert kept.tolist() == array.tolist()


def test_files_without_names_of_dtypes(tmp_path):
    """As NumPy writes them: two bytes can only be bfloat16, one byte can be several dtypes."""
    half = np.asarray(jnp.array([0.1, 3.0], jnp.bfloat16))
    np.savez(tmp_path / "a.npz", half=half, whole=np.arange(3))
    like = {"half": jnp.zeros(2, jnp.bfloat16), "whole": jnp.zeros(3, jnp.int32)}
    again = mx.load(tmp_path / "a.npz", like)
    assert again["half"].tolist() == [0.10009765625, 3.0]
    assert again["whole"].tolist() == [0, 1, 2]
    again = mx.load(tmp_path / "a.npz", like | {"half": jnp.zeros(2, jnp.float16)})
    assert again["half"].tolist() == [0.10009765625, 3.0], "the numbers, not their bits"

    for value in (np.zeros(2, "V1"), np.array(["a", "b"])):
        np.savez(tmp_path / "b.npz", a=value)
        with pytest.raises(ValueError, match=r"a in .*b.npz is .*no dtype of numbers"):
            mx.load(tmp_path / "b.npz", like={"a": jnp.zeros(2, jnp.float8_e4m3fn)})


def test_two_leaves_of_one_path(tmp_path):
    with pytest.raises(ValueError, match="two leaves with the path a/b; rename one"):
        mx.save(tmp_path / "a.npz", {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}})


def test_other_kinds_of_files(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(2))
    (tmp_path / "array.npy").rename(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("text", "no array")
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1000))
    content = bytearray((tmp_path / "c.npz").read_bytes())
    content[8] = 99  # the method of compression
    (tmp_path / "c.npz").write_bytes(content)
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "d.safetensors")
    content = (tmp_path / "d.safetensors").read_bytes().replace(b"F64", b"F99")
    (tmp_path / "d.safetensors").write_bytes(content)
    for file in ("a.npz", "b.npz", "c.npz", "d.safetensors"):
        with pytest.raises(ValueError, match=f"{file} is not a readable"):
            mx.load(tmp_path / file, like={"a": jnp.zeros(2)})


def test_damage_to_safetensors_is_noticed_or_harmless(tmp_path):
    tree = {"w": np.linspace(-1, 1, 12, dtype=np.float32), "n": np.arange(3)}
    path = tmp_path / "a.safetensors"
    mx.save(path, tree)
    whole = path.read_bytes()
    num_noticed = 0
    for i in range(len(whole)):
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :]):
            path.write_bytes(damaged)
            try:
                again = mx.load(path, tree)
            except ValueError:
                num_noticed += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, again, tree)
    assert num_noticed > 1.5 * len(whole)


def test_a_file_of_something_else_is_refused_before_its_arrays_are_read(
    tmp_path, monkeypatch
):
    """A megabyte may hold a gigabyte of zeros."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20))
    mx.save(tmp_path / "a.safetensors", {"a": np.zeros(2**10)})
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *_, **__: pytest.fail("read")
    )
    monkeypatch.setattr(safetensors, "deserialize", lambda _: pytest.fail("read"))
    for path, size in (("a.npz", 2**20), ("a.safetensors", 2**10)):
        with pytest.raises(ValueError, match=rf"a in .* has the shape \({size},\)"):
            mx.load(tmp_path / path, like={"a": jnp.zeros(2)})


def test_a_header_that_promises_more_than_there_is(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("a.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
    (tmp_path / "a.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is not a readable .* header"):
            io.load_arrays(tmp_path / name)


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        mx.save(tmp_path / "a.npz", {"a": jnp.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_loading_what_does_not_fit(tmp_path, suffix):
    opt = mx.optim.lstm(hidden=(3,))
    path = tmp_path / f"l2l.{suffix}"
    mx.save(path, opt.init(jax.random.key(0)))
    with pytest.raises(
        ValueError, match=r"out/w in .* has the shape \(3,\), like has \(4,\)|lstm/0/b"
    ):
        mx.load(path, like=mx.optim.lstm(hidden=(4,)).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="missing"):
        mx.load(path, like={"a": np.zeros(3)})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"not a readable {suffix}"):
        mx.load(path, like=opt.init(jax.random.key(0)))
    with pytest.raises(FileNotFoundError):
        mx.load(tmp_path / "none.npz", like={})
    np.savez(path.with_suffix(".npz"), **{"a": np.array([object()])})
    with pytest.raises(ValueError, match="not a readable npz"):
        mx.load(path.with_suffix(".npz"), like={"a": np.zeros(1)})
