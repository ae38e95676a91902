"""Functions made fit for `jax.vmap` give what they gave, by other operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metajax as mx


def operations(f, *args):
    """The names of all operations in the program of ``f``, those of loops and calls included."""
    text = str(jax.make_jaxpr(f)(*args))
    return {name for name in ("conv_general_dilated", "dot_general") if name in text}


def conv(x, w, numbers, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


LAST = ("NHWC", "HWIO", "NHWC")
FIRST = ("NCHW", "OIHW", "NCHW")
# The shapes of images and weights, and the convolution.
PLAIN = {
    "same": ((2, 5, 4, 3), (3, 3, 3, 2), partial(conv, numbers=LAST)),
    "strides": (
        (2, 7, 4, 3),
        (3, 2, 3, 2),
        partial(conv, numbers=LAST, strides=(2, 3)),
    ),
    "valid": ((2, 7, 4, 3), (3, 2, 3, 2), partial(conv, numbers=LAST, padding="VALID")),
    "padded": (
        (2, 3, 4, 5),
        (6, 3, 2, 3),
        partial(conv, numbers=FIRST, strides=(2, 1), padding=((1, 2), (0, 3))),
    ),
    "dilated": (
        (2, 3, 7, 8),
        (6, 3, 2, 3),
        partial(conv, numbers=FIRST, padding="VALID", rhs_dilation=(3, 2)),
    ),
    "axes turned": (
        (5, 2, 3, 4),
        (2, 3, 6, 3),
        partial(conv, numbers=("HNCW", "HWOI", "CWHN")),
    ),
    "1d": (
        (2, 9, 3),
        (4, 3, 2),
        partial(conv, numbers=("NHC", "HIO", "NHC"), strides=(2,)),
    ),
}
OTHER = {
    "groups": (
        (2, 5, 4, 4),
        (3, 3, 2, 6),
        partial(conv, numbers=LAST, feature_group_count=2),
    ),
    "transposed": (
        (2, 5, 4, 3),
        (3, 3, 3, 2),
        partial(conv, numbers=LAST, padding=((2, 2), (1, 1)), lhs_dilation=(2, 1)),
    ),
    "cut": (
        (2, 5, 4, 3),
        (3, 3, 3, 2),
        partial(conv, numbers=LAST, padding=((-1, 0), (1, 1))),
    ),
}


@pytest.mark.parametrize("name", PLAIN | OTHER)
def test_a_convolution_is_a_product_of_the_same_value(x64, name):
    """And of the same derivatives, under `vmap` over the weights."""
    size, kernel, convolve = (PLAIN | OTHER)[name]
    draw = np.random.default_rng(0).normal
    x, w = jnp.asarray(draw(size=size)), jnp.asarray(draw(size=(2, *kernel)))

    def run(f):
        def loss(w, x):
            y = f(x, w)
            return jnp.sum(jnp.sin(y)), y

        return jax.vmap(jax.grad(loss, (0, 1), has_aux=True), (0, None))

    ours = mx.nets.for_vmap(convolve)
    got, want = jax.jit(lambda *args: (run(ours)(*args), run(convolve)(*args)))(w, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, want)
    wanted = {"dot_general"} if name in PLAIN else {"conv_general_dilated"}
    assert operations(jax.vmap(ours, (None, 0)), x, w) == wanted


def test_loops_branches_and_calls_are_looked_into(x64):
    layer = partial(conv, numbers=LAST)

    def apply(w, x):
        x, _ = lax.scan(lambda x, _: (jax.checkpoint(layer)(x, w), None), x, None, 2)
        x = lax.cond(x.sum() > 0, layer, lambda x, w: 2 * layer(x, w), x, w)
        return {"y": jax.nn.relu(jax.jit(layer)(x, w))}

    draw = np.random.default_rng(0).normal
    w, x = jnp.asarray(draw(size=(3, 3, 2, 2))), jnp.asarray(draw(size=(2, 4, 4, 2)))
    ours = mx.nets.for_vmap(apply)
    assert operations(ours, w, x) == {"dot_general"}

    def value_and_grad(f, w):
        return jax.value_and_grad(lambda w: f(w, x)["y"].sum())(w)

    both = jax.jit(lambda w: [value_and_grad(f, w) for f in (ours, apply)])
    got, want = both(w)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), got, want)


@pytest.mark.parametrize(
    "draw",
    [
        jax.nn.initializers.lecun_normal(),
        jax.nn.initializers.glorot_uniform(),
        lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
        lambda key, shape: jax.random.randint(key, shape, 0, 9),
    ],
)
def test_draws_are_the_same_to_the_last_bit(draw, key):
    def init(key):
        k_first, k_second = jax.random.split(key)
        return draw(k_first, (3, 3, 2, 4)), draw(k_second, (5, 4))

    keys = jax.random.split(key, 2)
    ours = mx.nets.for_vmap(init)
    got, want = jax.jit(lambda keys: (jax.vmap(ours)(keys), jax.vmap(init)(keys)))(keys)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert "shape=(72,)" in str(jax.make_jaxpr(ours)(key)), "in a row"


def test_it_needs_no_jit(key):
    def apply(key, x):
        return conv(x, jax.random.normal(key, (3, 3, 1, 2)), LAST)

    x = jnp.ones((1, 4, 4, 1))
    with jax.disable_jit():
        got = mx.nets.for_vmap(apply)(key, x)
    np.testing.assert_allclose(got, apply(key, x), rtol=1e-5)


def test_numbers_keep_their_precision(key):
    """bfloat16 in, and what was asked for out."""
    x, w = jnp.ones((1, 4, 4, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 2), jnp.bfloat16)
    for options in ({}, {"preferred_element_type": jnp.float32}):
        layer = partial(conv, numbers=LAST, **options)
        got = mx.nets.for_vmap(layer)(x, w)
        assert got.dtype == layer(x, w).dtype
        assert float(got[0, 1, 1, 0]) == 9
