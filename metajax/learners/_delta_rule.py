"""Layers of fast weights that are written by the gated delta rule."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax._arguments import PositiveInt, checked
from metajax._arrays import matmul, standardise
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

_FORGETS = -6.0  # the logit of what is forgotten at each example, before meta-training


class Writes(NamedTuple):
    """What examples read and write, each ``[T, ...]``.

    Attributes:
      query: ``[T, K]``, where they read.
      key: ``[T, K]``, where they write.
      value: ``[T, V]``, what they write.
      rate: ``[T]``, how far, from 0, not at all, to 1, all the way.
      log_kept: ``[T]``, at most 0: the logarithm of what is kept of the memory.
    """

    query: Array
    key: Array
    value: Array
    rate: Array
    log_kept: Array


@checked
def delta_rule(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    *,
    width: PositiveInt = 64,
    depth: PositiveInt = 2,
    heads: PositiveInt = 4,
    head_size: PositiveInt = 16,
    chunk: PositiveInt = 16,
) -> Learner:
    """Layers of fast weights by the gated delta rule (Yang, Kautz & Hatamizadeh 2025, 2412.06464).

    A head holds ``S [V, K]``, zero at first. At each example it keeps a part ``a`` of it, and moves
    what it holds at a key of norm 1 towards a value, ``S <- a S + b (v - a S k) k^T`` (Schlag,
    Irie & Schmidhuber 2021): a step of gradient descent on ``|S k - v|^2 / 2``, as in test-time
    training of a linear model (Sun et al. 2025, 2407.04620), whose rate ``b`` and decay ``a`` the
    network chooses for each example, as it does keys and values.

    Unlike in those sequence models, an example is read before it is written, in every layer, and
    its label has a part in the values alone. So no label has to be shifted to the next token and no
    convolution is needed. The state does not grow: streams may have any length.

    The examples of a batch go through side by side, chunk by chunk (Yang et al. 2024, 2406.06484),
    and it comes to the same as one after another. So meta-train on whole streams,
    ``batch_size=100`` and ``horizon=1``, and evaluate with ``batch_size=1`` and ``horizon=100``.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      width: of what layers pass on.
      depth: layers.
      heads: memories of a layer.
      head_size: V and K.
      chunk: examples whose writes are solved for together: on a CPU at most 16, on a GPU 32 to 64.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.delta_rule(num_inputs=16, num_classes=5, width=8)
    >>> streams = mx.inner(learner, mx.tasks.prototypes(5, (16,), batch_size=20), horizon=1)
    >>> trainer = mx.trainer(mx.bptt(streams, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), ())
    >>> state, metrics = jax.jit(trainer.step)(state, ())
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(2), state.meta_params, num_tasks=4).loss.shape
    (4, 20)
    """

    def meta(key):
        k_image, k_label, k_layers, k_out = jax.random.split(key, 4)
        layer = partial(_init_layer, width=width, depth=depth, heads=(heads, head_size))
        return {
            "image": init_affine(k_image, num_inputs, width),
            "label": init_weights(k_label, (width, num_classes)),
            "layers": jax.vmap(layer)(jax.random.split(k_layers, depth)),
            "out": init_affine(k_out, width, num_classes),
        }

    def start(key, params):
        del key
        shape = (depth, heads, head_size, head_size)
        return jnp.zeros(shape, params["out"]["b"].dtype)

    def take(params, state, images, targets, mask):
        x = jax.vmap(affine, (None, 0))(params["image"], images)
        labels = targets @ params["label"].T
        layer = partial(_layer, labels, mask, chunk)
        x, state = lax.scan(layer, x, (params["layers"], state))
        logits = jax.vmap(affine, (None, 0))(params["out"], standardise(x))
        return at_least_float32(logits), state

    def answer(params, state, images):
        unknown = jnp.zeros((1, num_classes), images.dtype)

        def logits_of(image):
            logits, _ = take(params, state, image[None], unknown, None)
            return logits[0]

        return jax.vmap(logits_of)(images)

    return by_pieces(meta, start, take, answer, (num_inputs, num_classes))


def _init_layer(key: Key, *, width: int, depth: int, heads: tuple[int, int]) -> PyTree:
    variance = 2 / depth
    num_heads, head_size = heads
    size = num_heads * head_size
    k_ask, k_value, k_gates, k_out, k_forward = jax.random.split(key, 5)

    gates = with_outputs(init_affine(k_gates, width, 2 * num_heads), 2, num_heads)
    rate_and_forgetting = jnp.array([0.0, _FORGETS])
    gates["b"] = gates["b"] + rate_and_forgetting[:, None]
    return {
        "ask": with_outputs(init_affine(k_ask, width, 2 * size), 2, *heads),
        "value": with_outputs(init_affine(k_value, 2 * width, size), *heads),
        "gates": gates,
        "out": init_affine(k_out, size, width, variance),
        "forward": init_feed_forward(k_forward, width, variance),
    }


def _layer(
    labels: Array,
    mask: Array | None,
    chunk: int,
    x: Array,
    layer_and_memory: tuple[PyTree, Array],
) -> tuple[Array, Array]:
    """Examples ``x [B, width]`` after a layer, and its memory ``[heads, V, K]`` with them in it."""
    params, memory = layer_and_memory

    def ask(x, label):
        """Each field of what is read and written as ``[heads, ...]``."""
        x = standardise(x)
        query, key = _unit(jax.nn.silu(affine(params["ask"], x)))
        value = affine(params["value"], jnp.concatenate([x, label]))
        rate, forgetting = affine(params["gates"], x)
        log_kept = -jax.nn.softplus(forgetting)
        return Writes(query, key, value, jax.nn.sigmoid(rate), log_kept)

    def digest(x, found):
        found = standardise(found).ravel()
        return feed_forward(params["forward"], x + affine(params["out"], found))

    writes = jax.vmap(ask)(x, labels)
    if (
        mask is not None
    ):  # what does not count writes nothing, and nothing is forgotten for it
        rate = jnp.where(mask[:, None], writes.rate, 0)
        log_kept = jnp.where(mask[:, None], writes.log_kept, 0)
        writes = writes._replace(rate=rate, log_kept=log_kept)
    over_heads = jax.vmap(partial(read_and_write, chunk=chunk), (0, 1), (1, 0))
    found, memory = over_heads(memory, writes)
    return jax.vmap(digest)(x, found), memory


def _unit(x: Array) -> Array:
    """Vectors ``[..., N]`` of norm 1, nearly."""
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def read_and_write(memory: Array, writes: Writes, chunk: int) -> tuple[Array, Array]:
    """What examples find in ``memory [V, K]``, each before it writes, and the memory after them.

    The gated delta rule, ``a S + b (v - a S k) k^T``, in chunks of examples: within one, the
    differences that are written are the solution of a triangular system, and all that does not
    depend on the memory is computed for all chunks at once.

    Returns:
      ``[T, V]`` and ``[V, K]``.
    """
    length = len(writes.rate)
    chunk = min(chunk, length)
    padding = -length % chunk  # of examples that write nothing

    def in_chunks(x):
        x = jnp.pad(x, [(0, padding), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(-1, chunk, *x.shape[1:])

    chunks = jax.vmap(_solve)(jax.tree.map(in_chunks, writes))
    memory, found = lax.scan(_pass_chunk, memory, chunks)
    return found.reshape(-1, found.shape[-1])[:length], memory


class _Chunk(NamedTuple):
    """What a chunk of C examples does with whatever memory it meets.

    The differences that it writes are ``new - old S^T``; it reads ``query S^T`` of the memory and
    ``among`` of the differences; it keeps ``kept`` of the memory and writes at ``key``.
    """

    new: Array  # [C, V]
    old: Array  # [C, K]
    query: Array  # [C, K]
    among: Array  # [C, C]
    kept: Array  # []
    key: Array  # [C, K]


def _solve(writes: Writes) -> _Chunk:
    query, key, value, rate, log_kept = writes
    after = jnp.cumsum(
        log_kept
    )  # of the memory that the chunk meets, after each example
    before = after - log_kept

    def kept_since(log_kept):
        """Of what each has written, when another comes later, ``[later, C]``."""
        # Twice the triangle: what is not in it may overflow.
        logs = jnp.tril(log_kept[:, None] - after[None], -1)
        return jnp.tril(jnp.exp(logs), -1)

    met = rate[:, None] * kept_since(after) * matmul(key, key.T)
    solve = _inverse_of_one_plus(met)
    return _Chunk(
        new=matmul(solve, rate[:, None] * value),
        old=matmul(solve, (rate * jnp.exp(after))[:, None] * key),
        query=jnp.exp(before)[:, None] * query,
        among=kept_since(before) * matmul(query, key.T),
        kept=jnp.exp(after[-1]),
        key=jnp.exp(after[-1] - after)[:, None] * key,
    )


def _pass_chunk(memory: Array, chunk: _Chunk) -> tuple[Array, Array]:
    differences = chunk.new - matmul(chunk.old, memory.T)
    found = matmul(chunk.query, memory.T) + matmul(chunk.among, differences)
    return chunk.kept * memory + matmul(differences.T, chunk.key), found


def _inverse_of_one_plus(a: Array) -> Array:
    """``(1 + a)^-1`` of a strictly lower triangle ``a [C, C]``.

    From the inverses of blocks on the diagonal follow those of blocks of twice the size. A product
    of ``1 + a^2``, ``1 + a^4``, ... is as short, but loses all digits where keys are alike.
    """
    inverse = jnp.eye(len(a), dtype=a.dtype)
    size = 1
    while size < len(a):
        block = jnp.arange(len(a)) // size
        is_second = block[:, None] % 2 == 1
        beside = is_second & (block[:, None] == block[None] + 1)
        product = matmul(inverse, jnp.where(beside, a, 0))
        inverse = inverse - matmul(product, inverse)
        size *= 2
    return inverse
