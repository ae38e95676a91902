"""Networks that learn by changing weights of their own: fast weights, in place of gradient
descent.
"""

import math

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.learners._in_context import in_context
from metajax.learners._recurrent import (
    affine,
    counts,
    dense,
    lstm,
    lstm_init,
    lstm_start,
    recurrent,
)
from metajax.types import Array, InContext


def oja(fast: Array, pre: Array, post: Array, rate: Array | float) -> Array:
    """Oja's rule, ``A + rate * post (pre - post A)`` for each connection; ``fast [J, I]``, ``pre
    [I]``, ``post [J]``.

    Hebbian learning that forgets as much as keeps it bounded: for a linear neuron it converges to
    the first principal component of its inputs (Oja 1982).
    """
    return fast + rate * post[:, None] * (pre - post[:, None] * fast)


def hebbian(
    num_inputs: int, num_classes: int, rate: float = 0.011, plasticity: float = 0.01
) -> InContext:
    """A plastic layer that learns by Oja's rule (Miconi, Clune & Stanley 2018, arXiv 1804.02464,
    section 2).

    Its weights are ``W + alpha * A``: ``W`` and the plasticity ``alpha`` of each connection are
    meta-learned, as is the one rate of the rule; the Hebbian trace ``A`` starts from zero and is
    all that changes in an episode. As in Kirsch & Schmidhuber 2021, section 4.2, the layer has the
    error and the label as further inputs: zero while it predicts; then it sees the image again with
    both, and the rule takes the softmax of what comes out as its postsynaptic activity.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      rate: of the rule, before meta-training; between 0 and 1.
      plasticity: of every connection, before meta-training.

    Raises:
      TypeError, ValueError: sizes or rates out of range; and see `in_context`.

    >>> import jax, metajax as mx
    >>> net = mx.hebbian(num_inputs=16, num_classes=5)
    >>> loop = mx.inner(net.learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(0), net.init(jax.random.key(1)), num_tasks=4).loss.shape
    (4, 20)
    """
    num_inputs, num_classes = counts(num_inputs=num_inputs, num_classes=num_classes)
    rate, plasticity = (
        _checks.positive_float("rate", rate),
        _checks.positive_float("plasticity", plasticity),
    )
    if rate >= 1:
        raise ValueError(f"rate must be below 1, got {rate}")
    inputs = num_inputs + 2 * num_classes

    def init(key):
        return {
            "slow": dense(key, inputs, num_classes),
            "plasticity": jnp.full((num_classes, inputs), plasticity, float),
            "rate": jnp.full((), math.log(rate / (1 - rate)), float),  # its logit
        }

    def activate(params, fast, x, error, label):
        z = jnp.concatenate([x, error, label])
        weights = params["slow"]["w"] + params["plasticity"] * fast
        return z, weights @ z + params["slow"]["b"]

    def predict(params, fast, x):
        nothing = jnp.zeros(num_classes, x.dtype)
        return activate(params, fast, x, nothing, nothing)[1], fast

    def learn(params, fast, x, error, label):
        pre, out = activate(params, fast, x, error, label)
        return oja(fast, pre, jax.nn.softmax(out), jax.nn.sigmoid(params["rate"]))

    def start(key, params):
        return jnp.zeros_like(params["slow"]["w"])

    return in_context(init, start, predict, learn, (num_inputs, num_classes))


def delta(fast: Array, key: Array, value: Array, strength: Array | float) -> Array:
    """The delta rule: moves what ``fast [V, K]`` holds at ``key [K]`` by ``strength`` of the way to
    ``value [V]``.

    With keys of norm 1 and strength 1 the value is stored exactly, and what is stored at orthogonal
    keys is not touched (Widrow & Hoff 1960; Schlag, Irie & Schmidhuber 2021).
    """
    return fast + strength * jnp.outer(value - fast @ key, key)


def fast_weight_memory(
    num_inputs: int, num_classes: int, hidden: int = 32, size: int = 16
) -> InContext:
    """An LSTM that writes into fast weights (Schlag, Munkhdalai & Schmidhuber 2021, arXiv
    2011.07831, section 3).

    The fast weight memory ``F [size, size^2]`` has tensor products ``k1 x k2`` as keys. After each
    step the LSTM writes a value with the delta rule, ``F`` is scaled down to norm 1 should it be
    larger, and one association is read, to which the output adds. The defaults are the sizes of the
    baseline in Kirsch & Schmidhuber 2021, section 4.2.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      hidden: units of the LSTM.
      size: of values and of either half of a key.

    Raises:
      TypeError, ValueError: sizes out of range; and see `in_context`.

    >>> import jax, metajax as mx
    >>> net = mx.fast_weight_memory(num_inputs=16, num_classes=5)
    >>> loop = mx.inner(net.learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(0), net.init(jax.random.key(1)), num_tasks=4).loss.shape
    (4, 20)
    """
    num_inputs, num_classes, hidden, size = counts(
        num_inputs=num_inputs, num_classes=num_classes, hidden=hidden, size=size
    )

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "lstm": lstm_init(keys[0], num_inputs + 2 * num_classes, hidden),
            "heads": dense(keys[1], hidden, 5 * size + 1),
            "read": dense(keys[2], size, hidden),
            "out": dense(keys[3], hidden, num_classes),
        }

    def start(params):
        return lstm_start(params["lstm"]), jnp.zeros((size, size**2), params["out"]["b"].dtype)

    def cell(params, core, inputs):
        state, fast = core
        state, h = lstm(params["lstm"], state, inputs)
        heads = affine(params["heads"], h)
        k1, k2, value, q1, q2 = jnp.tanh(heads[:-1]).reshape(5, size)
        fast = delta(fast, jnp.outer(k1, k2).ravel(), value, jax.nn.sigmoid(heads[-1]))
        fast = fast / jnp.sqrt(jnp.maximum(1.0, jnp.sum(fast**2)))
        found = jax.nn.standardize(fast @ jnp.outer(q1, q2).ravel())
        return (state, fast), affine(params["out"], h + affine(params["read"], found))

    return recurrent(init, start, cell, num_inputs, num_classes)
