"""Ready-made problems."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks, nets
from metajax._arguments import NonNegative, PositiveInt, checked
from metajax._arrays import affine, lift
from metajax._losses import (
    at_least_float32,
    blank_masked,
    check_labels,
    cross_entropy_and_accuracy,
    masked_mean,
)
from metajax._random import draw_flat
from metajax.problems._supervised import classifier, cross_entropy, stateless
from metajax.types import Array, Params, Problem


def quadratic() -> Problem:
    """``f(x) = |W x - y|^2``, the synthetic problem of Andrychowicz et al. 2016, section 3.1.

    Tasks come from `metajax.tasks.quadratics`; ``x [n]`` starts from a standard normal.

    >>> import jax, metajax as mx
    >>> task = mx.tasks.quadratics(10).sample(jax.random.key(0), ())
    >>> x, model_state = mx.problems.quadratic().init(jax.random.key(1), task)
    >>> x.shape
    (10,)
    """

    def init(key, task):
        # () stands for no task where one start serves all; here none does.
        _checks.entries("task", task, ("W", "y"), "metajax.tasks.quadratics")
        return jax.random.normal(key, (task["W"].shape[1],))

    def loss(key, params, batch):
        del key
        _checks.entries("batch", batch, ("W", "y"), "metajax.tasks.quadratics")
        return jnp.sum((predict(params, batch["W"]) - batch["y"]) ** 2), {}

    def predict(params, w):
        return at_least_float32(w @ params)

    return stateless(init, loss, predict)


@checked
def mlp(sizes: Sequence[int], activation: Callable = jax.nn.sigmoid) -> Problem:
    """A multilayer perceptron as a `classifier` (Andrychowicz et al. 2016, section 3.2).

    Weights ``N(0, 1 / fan_in)``, biases 0. The input is flattened.

    Args:
      sizes: units of each layer, input and output included, e.g. ``(64, 20, 10)``.
      activation: between layers, e.g. `jax.nn.sigmoid` or `jax.nn.relu`.

    >>> import jax, metajax as mx
    >>> params, _ = mx.problems.mlp((64, 20, 10)).init(jax.random.key(0), ())
    >>> sum(x.size for x in jax.tree.leaves(params))
    1510
    """
    init, apply = perceptron(sizes, activation)
    return classifier(init, apply)


@checked
def logistic(
    inputs: PositiveInt, classes: PositiveInt, penalty: NonNegative = 0.0
) -> Problem:
    """Logistic regression: a convex `classifier`, linear, that starts from zero.

    The loss is the mean cross-entropy plus ``penalty / 2`` times the sum of squares of the weights
    (not the biases). With a penalty it is strongly convex in the weights.

    Args:
      inputs: values of an image.
      classes: number of classes.
      penalty: factor of the penalty.

    >>> import jax, metajax as mx
    >>> problem = mx.problems.logistic(64, 10)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> batch = mx.tasks.minibatches(5).test(jax.random.key(0), mx.data.load("digits"), ())
    >>> loss, metrics = problem.test(jax.random.key(0), params, model_state, batch)
    >>> round(float(loss), 4)
    2.3026
    """
    random_init, apply = perceptron((inputs, classes), jax.nn.relu)

    def init(key, task):
        del task
        return jax.tree.map(jnp.zeros_like, random_init(key))

    def loss(key, params, batch):
        del key
        batch = blank_masked(batch, "image", "label")
        value, metrics = cross_entropy(predict(params, batch["image"]), batch)
        squares = jnp.sum(at_least_float32(params[0]["w"]) ** 2)
        return value + penalty / 2 * squares, metrics

    def predict(params, images):
        return at_least_float32(apply(params, images))

    return stateless(init, loss, predict)


@checked
def autoencoder(sizes: Sequence[int], activation: Callable = jax.nn.sigmoid) -> Problem:
    """An autoencoder of images with values in [0, 1], with a perceptron each way.

    The loss is the mean over all values of the squared error. Values come out through a sigmoid.
    Labels are not used.

    Args:
      sizes: units from the image to the code, e.g. ``(64, 32, 8)``; the decoder has the same in
        reverse.
      activation: between layers.

    >>> import jax, metajax as mx
    >>> params, _ = mx.problems.autoencoder((64, 8)).init(jax.random.key(0), ())
    >>> [layer["w"].shape for layer in params]
    [(64, 8), (8, 64)]
    """
    encoder = _checks.positive_ints("sizes", sizes, like=(64, 32, 8), any_length=True)
    decoder = encoder[-2::-1]
    net_init, net_apply = perceptron((*encoder, *decoder), activation)

    def init(key, task):
        del task
        return net_init(key)

    def predict(params, images):
        return jax.nn.sigmoid(at_least_float32(net_apply(params, images)))

    def loss(key, params, batch):
        del key
        batch = blank_masked(batch, "image")
        flat = batch["image"].reshape(len(batch["image"]), -1)
        return masked_mean((predict(params, flat) - flat) ** 2, batch.get("mask")), {}

    return stateless(init, loss, predict)


@checked
def convnet(
    classes: PositiveInt = 10,
    shape: Sequence[int] = (32, 32, 3),
    filters: Sequence[int] = (16, 16, 16),
    hidden: PositiveInt = 32,
    kernel: PositiveInt = 5,
) -> Problem:
    """The optimizee for CIFAR-10 of Andrychowicz et al. 2016 (section 3.3): a `classifier`.

    Each convolution is followed by normalisation over the batch, an offset, ReLU and 2x2
    max-pooling; then come a dense layer with normalisation, offset and ReLU, and a linear layer.
    Order, kernels and weights ``N(0, 0.01^2)`` are those of the authors' code, but for its biases
    before normalisation, which do nothing, and its padding of odd sizes before pooling, which are
    cut off here. Parameters are ``{"conv": [...], "dense": [...]}``, a group for each of the
    paper's two optimizers.

    Args:
      classes: number of classes.
      shape: height, width and channels of an image.
      filters: of each convolution.
      hidden: units of the dense layer.
      kernel: height and width of the kernels.

    >>> import jax, metajax as mx
    >>> params, _ = jax.eval_shape(mx.problems.convnet().init, jax.random.key(0), ())
    >>> len(params["conv"]), params["dense"][0]["w"].shape
    (3, (256, 32))
    """
    height, width, channels = _checks.positive_ints("shape", shape, like=(32, 32, 3))
    filters = _checks.positive_ints(
        "filters", filters, like=(16, 16, 16), any_length=True
    )
    poolings = len(filters)
    features = (height >> poolings) * (width >> poolings) * filters[-1]
    if not features:
        raise ValueError(
            f"shape must be at least 2^{poolings} pixels high and wide for as many poolings, got "
            f"{shape}"
        )

    def init(key):
        keys = iter(jax.random.split(key, len(filters) + 2))

        def layer(size):
            w = 0.01 * draw_flat(next(keys), size)
            return {"w": w, "b": jnp.zeros(size[-1])}

        inputs = (channels, *filters[:-1])
        kernels = [(kernel, kernel, m, n) for m, n in zip(inputs, filters, strict=True)]
        return {
            "conv": [layer(size) for size in kernels],
            "dense": [layer((features, hidden)), layer((hidden, classes))],
        }

    def apply(params, x):
        if x.shape[1:] != (height, width, channels):
            raise ValueError(
                f"shape is {(height, width, channels)}, but an image is {tuple(x.shape[1:])}"
            )
        for layer in params["conv"]:
            x = nets.transductive_batch_norm(nets.conv(x, layer["w"]))
            x = nets.max_pool(jax.nn.relu(x + lift(layer["b"], x)))
        first, last = params["dense"]
        x = nets.transductive_batch_norm(x.reshape(len(x), -1) @ first["w"])
        x = jax.nn.relu(x + lift(first["b"], x))
        return affine(x, last["w"], last["b"])

    return classifier(init, apply)


@checked
def character_gru(symbols: PositiveInt, hidden: PositiveInt = 64) -> Problem:
    """A recurrent language model of ``{"text": [B, L + 1]}``, the tasks of `metajax.tasks.text`.

    One gated recurrent unit (Cho et al. 2014) reads a symbol at a time and predicts the next; the
    loss is the mean cross-entropy in nats, the metric ``accuracy``. A symbol out of range is an
    error or, where it is traced, a loss of NaN. Parameters: embeddings
    ``N(0, 1)``, other weights ``N(0, 1 / fan_in)``, biases 0. It predicts logits ``[B, L,
    symbols]`` from ``[B, L]``.

    Args:
      symbols: size of the alphabet.
      hidden: units, and values of an embedding.

    >>> import jax, metajax as mx
    >>> text = mx.data.sums()
    >>> problem = mx.problems.character_gru(len(text["alphabet"]), 8)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> batch = mx.tasks.text(5, length=20).train(jax.random.key(1), text, ())
    >>> loss, metrics = problem.test(jax.random.key(2), params, model_state, batch)
    """

    def init(key, task):
        del task
        k_in, k_x, k_h, k_out = jax.random.split(key, 4)
        scale = hidden**-0.5
        return {
            "in": draw_flat(k_in, (symbols, hidden)),
            "x": scale * draw_flat(k_x, (hidden, 3 * hidden)),
            "h": scale * draw_flat(k_h, (hidden, 3 * hidden)),
            "b": jnp.zeros(3 * hidden),
            "out": {
                "w": scale * draw_flat(k_out, (hidden, symbols)),
                "b": jnp.zeros(symbols),
            },
        }

    def predict(params, text):
        embedded = affine(params["in"][text.T], params["x"], params["b"])  # [L, B, 3 H]
        start = jnp.zeros((len(text), hidden), embedded.dtype)
        _, h = lax.scan(lambda h, x: _gru_step(params, h, x), start, embedded)
        logits = affine(h, params["out"]["w"], params["out"]["b"])
        return at_least_float32(logits).swapaxes(0, 1)

    def loss(key, params, batch):
        del key
        mask = batch.get("mask")
        check_labels(batch["text"], symbols, mask, "text")
        batch = blank_masked(batch, "text")
        logits = predict(params, batch["text"][:, :-1])
        target = batch["text"][:, 1:]
        return cross_entropy_and_accuracy(logits, target, mask)

    return stateless(init, loss, predict)


def _gru_step(params: Params, h: Array, x: Array) -> tuple[Array, Array]:
    """One step of the unit on ``x [B, 3 H]``, the embedded symbols in the space of the gates."""
    x_reset, x_update, x_new = jnp.split(x, 3, -1)
    h_reset, h_update, h_new = jnp.split(h @ params["h"], 3, -1)
    reset = jax.nn.sigmoid(x_reset + h_reset)
    update = jax.nn.sigmoid(x_update + h_update)
    new = jnp.tanh(x_new + reset * h_new)
    h = update * h + (1 - update) * new
    return h, h


@checked
def perceptron(sizes: Sequence[int], activation: Callable) -> tuple[Callable, Callable]:
    """``(init, apply)`` of a perceptron on flattened images."""
    sizes = _checks.positive_ints("sizes", sizes, like=(64, 20, 10), any_length=True)
    if len(sizes) < 2:
        raise ValueError(
            f"sizes must name at least the input and the output, e.g. (64, 20, 10), got {sizes}"
        )

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        layers = []
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True):
            layers.append({"w": draw_flat(k, (m, n)) / m**0.5, "b": jnp.zeros(n)})
        return layers

    def apply(params, images):
        x = images.reshape(images.shape[0], -1)
        if x.shape[1] != sizes[0]:
            raise ValueError(
                f"sizes[0] is {sizes[0]}, but an image {list(images.shape[1:])} has {x.shape[1]} "
                f"values"
            )
        *hidden, last = params
        for layer in hidden:
            x = activation(affine(x, layer["w"], layer["b"]))
        return affine(x, last["w"], last["b"])

    return init, apply
