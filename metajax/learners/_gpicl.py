"""A transformer that learns in its activations: its memory is all that it has seen."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax._arguments import PositiveInt, checked
from metajax._arrays import standardise
from metajax._losses import at_least_float32
from metajax.learners._in_context import by_pieces
from metajax.learners._layers import (
    affine,
    feed_forward,
    init_affine,
    init_feed_forward,
    init_weights,
    with_outputs,
)
from metajax.types import Array, Key, Learner, PyTree


class GPICLState(NamedTuple):
    """What a transformer has seen so far.

    Attributes:
      keys: ``[depth, context, heads, head_size]``, of each example, zero where none has been.
      values: the same.
      image: ``[F]``, the last one.
      label: ``[C]``, its label, one-hot.
      count: int32, how many there were.
    """

    keys: Array
    values: Array
    image: Array
    label: Array
    count: Array


@checked
def gpicl(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    context: PositiveInt = 100,
    *,
    width: PositiveInt = 64,
    depth: PositiveInt = 2,
    heads: PositiveInt = 4,
    head_size: PositiveInt = 16,
    lag: bool = True,
) -> Learner:
    """A causal transformer, the general-purpose in-context learner of Kirsch et al. 2022.

    arXiv 2212.04458. Each example is a token: the image, and the label of the example before,
    zeros at first. Layers of attention and of feed-forward, each normalised before, look at all
    tokens so far; positions are learned. Whether it memorises its tasks or learns to learn depends
    on how many there are: `metajax.tasks.finite`.

    The examples of a batch go through side by side, and it comes to the same as one after another,
    with the keys and values of those before kept in the state. So meta-train on whole streams,
    ``batch_size=100`` and ``horizon=1``, and evaluate with ``batch_size=1`` and ``horizon=100``.
    The weights of the attention are computed in float32 at most.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      context: the longest stream. After it, losses are NaN; a test example after just as many takes
        the place of the last.
      width: of the tokens between layers.
      depth: layers.
      heads: of each layer's attention.
      head_size: values of a key, a query and a value of one head.
      lag: whether a token holds the image that the label belongs to, too. Without it, as published,
        a first layer has to learn to look one token back before a second can compare images. With
        it meta-training leaves its plateau far sooner.

    Raises:
      ValueError: from the learner, a batch that is longer than the context.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.gpicl(num_inputs=16, num_classes=5, context=20, width=8)
    >>> streams = mx.inner(learner, mx.tasks.prototypes(5, (16,), batch_size=20), horizon=1)
    >>> trainer = mx.trainer(mx.bptt(streams, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), ())
    >>> state, metrics = jax.jit(trainer.step)(state, ())
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(2), state.meta_params, num_tasks=4).loss.shape
    (4, 20)
    """
    token_size = num_inputs * (1 + lag) + num_classes
    attention = (heads, head_size)

    def meta(key):
        k_token, k_position, k_layers, k_out = jax.random.split(key, 4)
        return {
            "token": init_affine(k_token, token_size, width),
            "position": 0.1 * init_weights(k_position, (context, width)),
            "layers": _init_layers(k_layers, depth, width, attention),
            "out": init_affine(k_out, width, num_classes),
        }

    def start(key, params):
        del key
        zeros = partial(jnp.zeros, dtype=params["out"]["b"].dtype)
        memory = zeros((depth, context, *attention))
        unseen = zeros(num_inputs), zeros(num_classes)
        return GPICLState(memory, memory, *unseen, jnp.int32(0))

    def take(params, state, images, targets, mask):
        _check_fits(images, context)
        counts = jnp.ones(len(images), bool) if mask is None else mask
        before, image = _before(counts, state.image, images)
        feedback, label = _before(counts, state.label, targets)
        place = state.count + jnp.cumsum(counts, dtype=jnp.int32) - counts

        tokens = jnp.concatenate([images, *[before] * lag, feedback], 1)
        x = jax.vmap(affine, (None, 0))(params["token"], tokens)
        x = x + params["position"][jnp.minimum(place, context - 1)]
        # What does not count is not written.
        slot = jnp.where(counts, place, context)
        layer = partial(_layer, place, slot)
        memory = (params["layers"], state.keys, state.values)
        x, (keys, values) = lax.scan(layer, x, memory)

        logits = _logits(params["out"], x, is_known=place < context)
        count = state.count + counts.sum(dtype=jnp.int32)
        return logits, GPICLState(keys, values, image, label, count)

    def answer(params, state, images):
        unknown = jnp.zeros((1, num_classes), images.dtype)
        state = state._replace(count=state.count - (state.count == context))

        def logits_of(image):
            return take(params, state, image[None], unknown, None)[0][0]

        # A few at a time: each example has a memory of its own.
        return lax.map(logits_of, images, batch_size=min(len(images), 32))

    return by_pieces(meta, start, take, answer, (num_inputs, num_classes))


def _check_fits(images: Array, context: int) -> None:
    if len(images) > context:
        raise ValueError(
            f"context is {context}, but a batch has {len(images)} examples; make it as long as the "
            f"longest stream"
        )


def _logits(params: PyTree, x: Array, is_known: Array) -> Array:
    logits = jax.vmap(affine, (None, 0))(params, standardise(x))
    # Positions beyond the context have not been learned.
    return jnp.where(is_known[:, None], at_least_float32(logits), jnp.nan)


def _before(counts: Array, first: Array, values: Array) -> tuple[Array, Array]:
    """The last of the ``values [B, N]`` that counts, before each and in the end.

    What comes before them is ``first [N]``.
    """
    stream = jnp.concatenate([first[None], values])
    last = lax.cummax(jnp.where(counts, jnp.arange(1, len(stream)), 0))
    before = jnp.concatenate([jnp.zeros_like(last[:1]), last[:-1]])
    return stream[before], stream[last[-1]]


def _init_layers(
    key: Key, depth: int, width: int, attention: tuple[int, int]
) -> PyTree:
    """Leaves ``[depth, ...]``."""
    variance = 2 / depth  # as the authors' code has it
    init = partial(_init_layer, width=width, attention=attention, variance=variance)
    return jax.vmap(init)(jax.random.split(key, depth))


def _init_layer(
    key: Key, *, width: int, attention: tuple[int, int], variance: float
) -> PyTree:
    heads, head_size = attention
    size = heads * head_size
    k_ask, k_out, k_forward = jax.random.split(key, 3)
    ask = init_affine(k_ask, width, 3 * size, variance)
    return {
        "ask": with_outputs(ask, 3, *attention),
        "out": init_affine(k_out, size, width, variance),
        "forward": init_feed_forward(k_forward, width, variance),
    }


def _layer(
    place: Array, slot: Array, x: Array, layer_and_memory: tuple[PyTree, Array, Array]
) -> tuple[Array, tuple[Array, Array]]:
    """Tokens ``x [B, width]`` after a layer, and its keys and values, theirs written at ``slot``.

    Each looks at all up to its own place.
    """
    params, keys, values = layer_and_memory

    def ask(x):
        return affine(params["ask"], standardise(x))

    def digest(x, found):
        return feed_forward(params["forward"], x + affine(params["out"], found.ravel()))

    query, key, value = jnp.moveaxis(jax.vmap(ask)(x), 1, 0)
    keys = keys.at[slot].set(key, mode="drop")
    values = values.at[slot].set(value, mode="drop")
    seen = jnp.arange(len(keys))[None] <= place[:, None]
    found = jax.nn.dot_product_attention(query, keys, values, mask=seen[None, None])
    return jax.vmap(digest)(x, found), (keys, values)
