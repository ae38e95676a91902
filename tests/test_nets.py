"""The networks against `lax` convolutions, against the same networks in flax.linen, and their
published sizes.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metajax as mx
from metajax._arrays import standardise
from metajax.nets import max_pool


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("k", "stride", "shape"), [(3, 1, (5, 4)), (3, 2, (7, 4)), (5, 3, (8, 1))]
)
def test_conv_equals_lax(k, stride, shape, x64, key):
    def lax_conv(x, w):
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.jit
    def both(key):
        k_x, k_w, k_v = jax.random.split(key, 3)
        x, w = (
            jax.random.normal(k_x, (2, *shape, 3)),
            jax.random.normal(k_w, (k, k, 3, 4)),
        )
        (ours, our_vjp), (theirs, their_vjp) = (
            jax.vjp(f, x, w) for f in (partial(mx.nets.conv, stride=stride), lax_conv)
        )
        v = jax.random.normal(k_v, theirs.shape)
        return (ours, our_vjp(v)), (theirs, their_vjp(v))

    ours, theirs = both(key)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), ours, theirs
    )


class Conv4(nn.Module):
    """`conv4` in flax.linen."""

    pooled: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.Conv(3, (3, 3), 1 if self.pooled else 2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            x = nn.max_pool(x, (2, 2), (2, 2)) if self.pooled else x
        return nn.Dense(2)(x.reshape(len(x), -1))


class ResNet(nn.Module):
    """`resnet12` in flax.linen, with one block."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=False)
        y = norm()(nn.Conv(3, (1, 1), use_bias=False)(x))
        for i in range(3):
            x = norm()(nn.Conv(3, (3, 3), use_bias=False)(x))
            x = nn.leaky_relu(x + y if i == 2 else x, 0.1)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(2)(x.mean((1, 2)))


def linen_conv4(params):
    body, head = params["body"], params["head"]
    convs = {
        f"Conv_{i}": {"kernel": layer["w"], "bias": layer["b"]}
        for i, layer in enumerate(body)
    }
    norms = {
        f"BatchNorm_{i}": {"scale": layer["scale"], "bias": layer["offset"]}
        for i, layer in enumerate(body)
    }
    return convs | norms | {"Dense_0": {"kernel": head["w"], "bias": head["b"]}}


def linen_resnet(params):
    layers = [
        layer
        for block in params["body"]
        for layer in (block["shortcut"], *block["convs"])
    ]
    convs = {f"Conv_{i}": {"kernel": layer["w"]} for i, layer in enumerate(layers)}
    norms = {
        f"BatchNorm_{i}": {"scale": layer["scale"], "bias": layer["offset"]}
        for i, layer in enumerate(layers)
    }
    return (
        convs
        | norms
        | {"Dense_0": {"kernel": params["head"]["w"], "bias": params["head"]["b"]}}
    )


NETS = {
    "conv4": (mx.nets.conv4(2, (9, 12, 2), 3), Conv4(False), linen_conv4, (9, 12, 2)),
    "conv4max_pool": (
        *(
            mx.nets.conv4(2, (17, 36, 2), 3, downsample="max_pool"),
            Conv4(True),
            linen_conv4,
        ),
        (17, 36, 2),
    ),
    "resnet12": (
        mx.nets.resnet12(2, (5, 6, 2), (3,)),
        ResNet(),
        linen_resnet,
        (5, 6, 2),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_nets_equal_the_same_in_linen(name, x64, key):
    net, module, renamed, shape = NETS[name]
    statistics = jax.eval_shape(module.init, key, jnp.zeros((3, *shape)))["batch_stats"]

    @jax.jit
    def both(key):
        k_init, k_noise, k_image = jax.random.split(key, 3)
        params, unravel = jax.flatten_util.ravel_pytree(net.init(k_init))
        # Noise, so that biases, scales and offsets matter too.
        params = unravel(params + 0.3 * jax.random.normal(k_noise, params.shape))
        images = jax.random.normal(k_image, (3, *shape))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), statistics)
        variables = {"params": renamed(params), "batch_stats": zeros}
        return net.apply(params, images), module.apply(
            variables, images, mutable=["batch_stats"]
        )[0]

    ours, theirs = both(key)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert float(jnp.abs(ours).max()) > 0.1


def test_max_pool_equals_reduce_window(key):
    x = jax.random.normal(key, (2, 5, 4, 3))

    def reduce_window(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )

    v = jax.random.normal(key, (2, 2, 2, 3))
    ours, theirs = jax.jit(
        lambda x: [(f(x), jax.vjp(f, x)[1](v)) for f in (max_pool, reduce_window)]
    )(x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert np.isnan(
            max_pool(jnp.zeros((1, 2, 2, 1)).at[0, *at, 0].set(jnp.nan))
        ).all(), "NaN is not hidden"


@pytest.mark.slow
def test_gradients_through_pooling_are_finite(key):
    # With the compiler's settings of these tests, those of x.max over the four were not.
    few = mx.data.few_shot("digits", "train")
    image = jnp.repeat(
        jax.image.resize(
            few["image"][few["start"][:-1]].astype(np.float32), (5, 16, 16, 1), "linear"
        ),
        3,
        -1,
    )
    net = mx.nets.conv4(5, (16, 16, 3), 2, downsample="max_pool")
    problem = mx.problems.classifier(*net)
    batch = {"image": image.astype(np.uint8), "label": jnp.arange(5)}
    gradient = jax.jit(jax.grad(lambda params: problem.loss(key, params, (), batch)[0]))
    grads = gradient(net.init(jax.random.key(100)))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_published_sizes():
    def parameters(net):
        return jax.eval_shape(net.init, jax.random.key(0))

    assert size(parameters(mx.nets.conv4(5))) == 113_221
    assert (
        size(parameters(mx.nets.conv4(5, (84, 84, 3), 32, downsample="max_pool")))
        == 32_901
    )
    weights = 784 * 256 + 256 * 128 + 128 * 64 + 64 * 64
    assert (
        size(parameters(mx.nets.dense4(5)))
        == weights + 3 * (256 + 128 + 64 + 64) + 64 * 5 + 5
    )
    resnet = parameters(mx.nets.resnet12(5))
    assert size(resnet["body"]) == 12_424_320
    assert size(resnet["head"]) == 640 * 5 + 5


def test_dense4_against_numpy(x64, key):
    net = mx.nets.dense4(2, (2, 2, 1), (5, 3))
    params = jax.jit(net.init)(key)
    params["body"][1]["offset"] += 0.5
    images = jax.random.normal(key, (6, 2, 2, 1))
    x = np.asarray(images).reshape(6, 4)
    for layer in jax.device_get(params["body"]):
        x = x @ layer["w"] + layer["b"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * layer["scale"] + layer[
            "offset"
        ]
        x = np.maximum(x, 0)
    expected = x @ np.asarray(params["head"]["w"]) + np.asarray(params["head"]["b"])
    np.testing.assert_allclose(net.apply(params, images), expected, rtol=1e-10)


def test_weights_are_as_asked_for(key):
    params = jax.jit(mx.nets.conv4(5).init)(key)
    for w, fans in ((params["body"][1]["w"], 9 * 128), (params["head"]["w"], 256 + 5)):
        bound = (6 / fans) ** 0.5  # Glorot & Bengio 2010, eq. 16
        assert 0.98 * bound < float(jnp.abs(w).max()) <= bound
        np.testing.assert_allclose(w.std(), bound / 3**0.5, rtol=0.05)
    assert not np.array_equal(params["body"][1]["w"], params["body"][2]["w"])
    zeros = jax.jit(mx.nets.dense4(5, weights=jax.nn.initializers.zeros).init)(key)
    assert all(
        (layer["w"] == 0).all() and (layer["scale"] == 1).all()
        for layer in zeros["body"]
    )


def test_only_the_transductive_norm_looks_at_other_images(key):
    @partial(jax.jit, static_argnums=0)
    def difference(norm, key):
        net = mx.nets.dense4(3, (4, 4, 1), (5,), norm=norm)
        params, images = net.init(key), jax.random.normal(key, (6, 4, 4, 1))
        return jnp.abs(
            net.apply(params, images)[:3] - net.apply(params, images[:3])
        ).max()

    assert difference(mx.nets.transductive_batch_norm, key) > 1e-2
    assert difference(mx.nets.layer_norm, key) < 1e-5


@pytest.mark.parametrize(
    ("make", "layers"),
    [(mx.nets.conv4, 4), (mx.nets.dense4, 4), (mx.nets.resnet12, 16)],
)
def test_every_layer_of_the_body_is_normalised_as_asked_for(make, layers, key):
    normalised = []

    def norm(x):
        normalised.append(x.shape)
        return x

    net = make(3, (16, 16, 1), norm=norm)
    logits = jax.eval_shape(
        lambda key: net.apply(net.init(key), jnp.zeros((2, 16, 16, 1))), key
    )
    assert logits.shape == (2, 3)
    assert len(normalised) == layers
    assert all(shape[0] == 2 for shape in normalised)


def test_norms_against_numpy(key):
    x = np.asarray(3 + 2 * jax.random.normal(key, (4, 3, 3, 2)), np.float64)
    for norm, axes in (
        (mx.nets.transductive_batch_norm, (0, 1, 2)),
        (mx.nets.layer_norm, (1, 2, 3)),
    ):
        expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(
            x.var(axes, keepdims=True) + 1e-5
        )
        np.testing.assert_allclose(
            norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5
        )


def messages_of_cells(x):
    """Of cells whose messages are ``x [N, slots]``, normalised; ``[N, slots]`` again."""
    slots = x.shape[-1]
    cell = mx.cells.lstm(slots, slots, layer_norm=True)
    params = {"w": jnp.eye(slots), "b": jnp.zeros(slots)}
    params |= {"scale": jnp.ones(slots), "offset": jnp.zeros(slots)}
    h = x[None, :, None]  # one input, and a cell for each row
    return cell.backward({"backward": params}, (h, h), slots)[0]


# Each normalises over the last axis of ``[N, F]``.
NORMS = {
    "batch": lambda x: mx.nets.transductive_batch_norm(x.T).T,
    "layer": mx.nets.layer_norm,
    "cells": messages_of_cells,
    "fast weights": standardise,
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_see_a_variance_that_is_small_beside_the_mean(name, key):
    """As the mean of the squares less the square of the mean it would be rounded away."""
    for mean, spread in ((10, 0.01), (1e4, 1)):
        x = mean + spread * jax.random.normal(key, (3, 8))
        exact = np.asarray(x, np.float64)
        expected = exact - exact.mean(-1, keepdims=True)
        expected /= np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(NORMS[name](x), expected, atol=2e-3)


@pytest.mark.parametrize("axes", [-1, 0, (0, 2)])
def test_the_derivatives_of_a_norm_are_those_of_its_formula(x64, key, axes):
    """First and second ones, against plain automatic differentiation."""

    def formula(x, axes):
        centred = x - x.mean(axes, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)

    def derivatives(norm):
        def f(x):
            return jnp.sin(3 * norm(x, axes)).sum()

        forward_over_reverse = jax.hessian(f)(x)
        reverse_over_reverse = jax.jacrev(jax.grad(f))(x)
        return f(x), jax.grad(f)(x), forward_over_reverse, reverse_over_reverse

    # As small as the constant under the root in places.
    x = jax.random.normal(key, (3, 2, 4)) * jnp.array([1e-3, 1.0, 10.0])[:, None, None]
    ours, plain = derivatives(standardise), derivatives(formula)
    for got, expected in zip(ours, plain, strict=True):
        atol = 1e-12 * abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=atol)


def test_adapting_the_head_alone(key):
    """What ANIL needs: the head is picked by name; here on an episode of real digits."""
    net = mx.nets.dense4(3, (8, 8, 1), (16,))
    problem = mx.problems.classifier(*net)
    data = mx.data.few_shot("digits", "train")
    tasks = mx.tasks.episodes(3, 2)

    @jax.jit
    def adapt(key):
        start, _ = problem.init(key, ())
        params = start
        batch = tasks.train(key, data, tasks.sample(key, data))
        losses = []
        for _ in range(5):
            loss, grads = jax.value_and_grad(
                lambda p: problem.loss(key, p, (), batch)[0]
            )(params)
            params = params | {
                "head": jax.tree.map(
                    lambda x, g: x - 0.3 * g, params["head"], grads["head"]
                )
            }
            losses.append(loss)
        return start, params, losses

    start, params, losses = adapt(key)
    assert losses == sorted(losses, reverse=True)
    assert float(losses[-1]) < 0.7 * float(losses[0])
    jax.tree.map(np.testing.assert_array_equal, params["body"], start["body"])


BAD = {
    "conv: channels": (
        lambda: mx.nets.conv(jnp.ones((2, 8, 8, 2)), jnp.ones((3, 3, 1, 4))),
        ValueError,
        r"x must be",
    ),
    "conv: kernel": (
        lambda: mx.nets.conv(jnp.ones((2, 8, 8, 1)), jnp.ones((3, 1, 1, 4))),
        ValueError,
        r"w \[k, k",
    ),
    "no ways": (lambda: mx.nets.conv4(0), ValueError, "ways"),
    "shape without channels": (
        lambda: mx.nets.conv4(5, (28, 28)),
        ValueError,
        r"shape must have 3 numbers, such as \(28, 28, 1\)",
    ),
    "shape a number": (
        lambda: mx.nets.dense4(5, 784),
        TypeError,
        r"shape must be a tuple such as \(28, 28, 1\)",
    ),
    "shape of floats": (lambda: mx.nets.conv4(5, (28.0, 28, 1)), TypeError, "shape"),
    "filters zero": (lambda: mx.nets.conv4(5, filters=0), ValueError, "filters"),
    "unknown downsampling": (
        lambda: mx.nets.conv4(5, downsample="pool"),
        ValueError,
        "downsample",
    ),
    "too small for pooling": (
        lambda: mx.nets.conv4(5, (8, 8, 1), downsample="max_pool"),
        ValueError,
        "16x16",
    ),
    "norm a name": (lambda: mx.nets.conv4(5, norm="batch"), TypeError, "norm"),
    "norm of dense4 a name": (
        lambda: mx.nets.dense4(5, norm="batch"),
        TypeError,
        "norm",
    ),
    "hidden zero": (lambda: mx.nets.dense4(5, hidden=(0,)), ValueError, "hidden"),
    "resnet12 too small": (
        lambda: mx.nets.resnet12(5, (8, 8, 3)),
        ValueError,
        "16x16 for 4 poolings",
    ),
    "norm of resnet12 a name": (
        lambda: mx.nets.resnet12(5, norm="batch"),
        TypeError,
        "norm",
    ),
    "weights an array": (
        lambda: mx.nets.conv4(5, weights=jnp.ones(3)),
        TypeError,
        "weights",
    ),
    "images of another shape": (
        lambda: mx.nets.conv4(5).apply({}, jnp.ones((2, 32, 32, 3))),
        ValueError,
        r"shape is \(28, 28, 1\), but an image is \(32, 32, 3\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("of_cotangent", [0.0, 100.0])
def test_the_derivative_of_a_normalisation_is_exact_far_from_zero(
    x64, offset, of_cotangent
):
    """Both modes in float32 err no more than JAX's own derivatives of the formula."""
    rng = np.random.default_rng(0)
    shape = (5, 7, 7, 4)
    x = (rng.normal(size=shape) + offset).astype(np.float32)
    change = (rng.normal(size=shape) + of_cotangent).astype(np.float32)
    axes = (0, 1, 2)

    def formula(x):
        centred = x - x.mean(axes, keepdims=True)
        variance = jnp.square(centred).mean(axes, keepdims=True)
        return centred / jnp.sqrt(variance + 1e-5)

    def derivatives(norm, dtype):
        at, along = jnp.asarray(x, dtype), jnp.asarray(change, dtype)
        _, forward = jax.jvp(norm, (at,), (along,))
        _, pull = jax.vjp(norm, at)
        return forward, *pull(along)

    exact = derivatives(formula, jnp.float64)
    ours = derivatives(mx.nets.transductive_batch_norm, jnp.float32)
    plain = derivatives(formula, jnp.float32)
    for a, b, want in zip(ours, plain, exact, strict=True):
        assert a.dtype == jnp.float32
        size = np.linalg.norm(want)
        assert np.linalg.norm(a - want) < 1.5 * np.linalg.norm(b - want) + 1e-7 * size
