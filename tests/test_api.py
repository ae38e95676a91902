"""The public surface: flat, documented, each name with a runnable example."""

import doctest
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import metajax as mx

MODULES = [mx, *(x for x in map(mx.__dict__.get, mx.__all__) if inspect.ismodule(x))]
FUNCTIONS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if not name.startswith("_")
    and inspect.isfunction(value)
    and value.__module__.startswith("metajax")
    if name in module.__dict__.get("__all__", [name])
}


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
    mx.save(tmp_path / "a.safetensors", {"a": np.arange(6.0).reshape(2, 3).T, "b": [np.float32(2)]})
    read = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert read["a"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert read["b/0"] == 2


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_dtypes_and_names_that_numpy_does_not_know_or_keeps_for_itself(tmp_path, suffix):
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
            ValueError, match=r"float8_e4m3fn, which safetensors does not read back; write"
        ):
            mx.save(tmp_path / f"b.{suffix}", eight)
    else:
        mx.save(tmp_path / f"b.{suffix}", eight)
        assert mx.load(tmp_path / f"b.{suffix}", like=eight)["x"].tolist() == [0, 1, 2]


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
