"""Networks that learn by changing weights of their own: fast weights, not gradient descent."""

import math

import jax
import jax.numpy as jnp

from metajax._arguments import Decay, PositiveFloat, PositiveInt, check, checked
from metajax._arrays import matmul, standardise
from metajax.learners._in_context import in_context
from metajax.learners._layers import (
    affine,
    init_affine,
    init_lstm,
    lstm_start,
    lstm_step,
)
from metajax.learners._recurrent import recurrent
from metajax.types import Array, Learner


def oja(fast: Array, pre: Array, post: Array, rate: Array | float) -> Array:
    """Oja's rule for each connection, ``A + rate * post (pre - post A)``.

    Hebbian learning that forgets as much as keeps it bounded: for a linear neuron it converges to
    the first principal component of its inputs (Oja 1982). ``fast [J, I]``, ``pre [I]``,
    ``post [J]``.
    """
    return fast + rate * post[:, None] * (pre[None] - post[:, None] * fast)


@checked
def hebbian(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    rate: PositiveFloat = 0.011,
    plasticity: PositiveFloat = 0.01,
) -> Learner:
    """A plastic layer that learns by Oja's rule (Miconi, Clune & Stanley 2018, arXiv 1804.02464).

    Its weights are ``W + alpha * A`` (section 2): ``W`` and the plasticity ``alpha`` of each
    connection are meta-learned, as is the one rate of the rule; the Hebbian trace ``A`` starts from
    zero and is all that changes in an episode. As in Kirsch & Schmidhuber 2021, section 4.2, the
    layer has the error and the label as further inputs: zero while it predicts; then it sees the
    image again with both, and the rule takes the softmax of what comes out as its postsynaptic
    activity.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      rate: of the rule, before meta-training; between 0 and 1.
      plasticity: of every connection, before meta-training.

    >>> import jax, metajax as mx
    >>> learner = mx.hebbian(num_inputs=16, num_classes=5)
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4).loss.shape
    (4, 20)
    """
    check(Decay, rate=rate)
    inputs = num_inputs + 2 * num_classes

    def meta(key):
        return {
            "slow": init_affine(key, inputs, num_classes),
            "plasticity": jnp.full((num_classes, inputs), plasticity, float),
            "rate": jnp.full((), math.log(rate / (1 - rate)), float),  # its logit
        }

    def start(key, params):
        del key
        return jnp.zeros_like(params["slow"]["w"])

    def activate(params, fast, x, error, label):
        pre = jnp.concatenate([x, error, label])
        weights = params["slow"]["w"] + params["plasticity"] * fast
        return pre, matmul(weights, pre) + params["slow"]["b"]

    def predict(params, fast, x):
        nothing = jnp.zeros(num_classes, x.dtype)
        _, logits = activate(params, fast, x, nothing, nothing)
        return logits, fast

    def learn(params, fast, x, error, label):
        pre, out = activate(params, fast, x, error, label)
        return oja(fast, pre, jax.nn.softmax(out), jax.nn.sigmoid(params["rate"]))

    return in_context(meta, start, predict, learn, (num_inputs, num_classes))


def delta(fast: Array, key: Array, value: Array, strength: Array | float) -> Array:
    """The delta rule: moves what ``fast`` holds at ``key`` by ``strength`` of the way to ``value``.

    With keys of norm 1 and strength 1 the value is stored exactly, and what is stored at orthogonal
    keys is not touched (Widrow & Hoff 1960; Schlag, Irie & Schmidhuber 2021). ``fast [V, K]``,
    ``key [K]``, ``value [V]``.
    """
    return fast + strength * jnp.outer(value - fast @ key, key)


@checked
def fast_weight_memory(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    hidden: PositiveInt = 32,
    size: PositiveInt = 16,
) -> Learner:
    """An LSTM that writes into fast weights (Schlag, Munkhdalai & Schmidhuber 2021, 2011.07831).

    The fast weight memory ``F [size, size^2]`` has tensor products ``k1 x k2`` as keys (section 3).
    After each step the LSTM writes a value with the delta rule, ``F`` is scaled down to norm 1
    should it be larger, and one association is read, to which the output adds. The defaults are the
    sizes of the baseline in Kirsch & Schmidhuber 2021, section 4.2.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      hidden: units of the LSTM.
      size: of values and of either half of a key.

    >>> import jax, metajax as mx
    >>> learner = mx.fast_weight_memory(num_inputs=16, num_classes=5)
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4).loss.shape
    (4, 20)
    """

    def meta(key):
        k_lstm, k_heads, k_read, k_out = jax.random.split(key, 4)
        return {
            "lstm": init_lstm(k_lstm, num_inputs + 2 * num_classes, hidden),
            "heads": init_affine(k_heads, hidden, 5 * size + 1),
            "read": init_affine(k_read, size, hidden),
            "out": init_affine(k_out, hidden, num_classes),
        }

    def start(params):
        fast = jnp.zeros((size, size**2), params["out"]["b"].dtype)
        return lstm_start(params["lstm"]), fast

    def network(params, state, inputs):
        lstm_state, fast = state
        lstm_state, h = lstm_step(params["lstm"], lstm_state, inputs)

        # Write one association, and keep the memory within norm 1.
        heads = affine(params["heads"], h)
        k1, k2, value, q1, q2 = jnp.tanh(heads[:-1]).reshape(5, size)
        strength = jax.nn.sigmoid(heads[-1])
        fast = delta(fast, jnp.outer(k1, k2).ravel(), value, strength)
        fast = fast / jnp.sqrt(jnp.maximum(1.0, jnp.sum(fast**2)))

        # Read another.
        found = standardise(fast @ jnp.outer(q1, q2).ravel())
        logits = affine(params["out"], h + affine(params["read"], found))
        return (lstm_state, fast), logits

    return recurrent(meta, start, network, num_inputs, num_classes)
