"""What inner optimizers minimise."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, nets
from metajax._losses import cross_entropy_and_accuracy
from metajax._random import draw_flat
from metajax.types import Problem


def quadratic() -> Problem:
    """``f(x) = |W x - y|^2``, the synthetic problem of Andrychowicz et al. 2016, section 3.1.

    Tasks come from `metajax.tasks.quadratics`; ``x [n]`` starts from a standard normal.

    >>> import jax, metajax as mx
    >>> task = mx.tasks.quadratics(10).sample(jax.random.key(0), ())
    >>> mx.problems.quadratic().init(jax.random.key(1), task).shape
    (10,)
    """

    def init(key, task):
        _checks.entries(
            "task", task, ("W", "y"), "tasks.quadratics"
        )  # () stands for no task where one start serves all
        return jax.random.normal(key, (task["W"].shape[1],))

    def loss(key, params, batch):
        return jnp.sum((batch["W"] @ params - batch["y"]) ** 2), {}

    return Problem(init, loss)


def classifier(net_init: Callable, net_apply: Callable) -> Problem:
    """Softmax classification of ``batch = {"image": [B, ...], "label": [B]}`` by any ``(init,
    apply)`` pair.

    Args:
      net_init: ``(key) -> params``.
      net_apply: ``(params, images [B, ...]) -> logits [B, C]``.

    Returns: A problem whose loss is the mean cross-entropy in nats and whose metric is
      ``accuracy``. A label out of range is an error or, where it is traced, a loss of NaN.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> problem = mx.problems.classifier(lambda key: jnp.zeros((64, 10)), lambda w, x: x.reshape(len(x), -1) @ w)
    >>> batch = {"image": jnp.ones((2, 8, 8)), "label": jnp.array([3, 7])}
    >>> loss, metrics = problem.loss(jax.random.key(0), jnp.zeros((64, 10)), batch)
    >>> round(float(loss), 4)
    2.3026
    """
    _checks.function(net_init=net_init, net_apply=net_apply)

    def init(key, task):
        return net_init(key)

    def loss(key, params, batch):
        logits = net_apply(params, batch["image"])
        if logits.ndim != 2 or logits.shape[0] != batch["label"].shape[0]:
            raise ValueError(
                f"net_apply must give logits [batch, classes]: for labels {list(batch['label'].shape)} it gave "
                f"{list(logits.shape)}"
            )
        return cross_entropy_and_accuracy(logits, batch["label"])

    return Problem(init, loss)


def regressor(net_init: Callable, net_apply: Callable) -> Problem:
    """Regression of ``batch = {"x": [B, ...], "y": [B, ...]}`` by any ``(init, apply)`` pair.

    Args:
      net_init: ``(key) -> params``.
      net_apply: ``(params, x [B, ...]) -> predictions``, of the shape of ``y``.

    Returns:
      A problem whose loss is the mean over all values of the squared error, with no factor 1/2.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> problem = mx.problems.regressor(lambda key: jnp.zeros((3, 1)), lambda w, x: x @ w)
    >>> batch = {"x": jnp.ones((4, 3)), "y": jnp.ones((4, 1))}
    >>> loss, metrics = problem.loss(jax.random.key(0), jnp.ones((3, 1)), batch)
    >>> float(loss)
    4.0
    """
    _checks.function(net_init=net_init, net_apply=net_apply)

    def init(key, task):
        return net_init(key)

    def loss(key, params, batch):
        predicted = net_apply(params, batch["x"])
        if predicted.shape != batch["y"].shape:  # [B] from [B, 1] would broadcast to [B, B]
            raise ValueError(
                f"net_apply must give predictions of the shape of y, {list(batch['y'].shape)}; "
                f"it gave {list(predicted.shape)}"
            )
        return jnp.mean((predicted - batch["y"]) ** 2), {}

    return Problem(init, loss)


def mlp(sizes: Sequence[int], activation: Callable = jax.nn.sigmoid) -> Problem:
    """A multilayer perceptron as a `classifier`; the optimizee of Andrychowicz et al. 2016, section
    3.2.

    Weights ``N(0, 1 / fan_in)``, biases 0. The input is flattened.

    Args:
      sizes: units of each layer, input and output included, e.g. ``(64, 20, 10)``.
      activation: between layers, e.g. `jax.nn.sigmoid` or `jax.nn.relu`.

    >>> import jax, metajax as mx
    >>> params = mx.problems.mlp((64, 20, 10)).init(jax.random.key(0), ())
    >>> sum(x.size for x in jax.tree.leaves(params))
    1510
    """
    return classifier(*perceptron(sizes, activation))


def logistic(inputs: int, classes: int, penalty: float = 0.0) -> Problem:
    """Logistic regression: a convex `classifier`, linear, that starts from zero.

    The loss is the mean cross-entropy plus ``penalty / 2`` times the sum of squares of the weights
    (not the biases). With a penalty it is strongly convex in the weights.

    Args:
      inputs: values of an image.
      classes: number of classes.
      penalty: factor of the penalty.

    >>> import jax, metajax as mx
    >>> problem = mx.problems.logistic(64, 10)
    >>> batch = mx.tasks.minibatches(5).train(jax.random.key(0), mx.data.load("digits"), (), 0)
    >>> loss, metrics = problem.loss(jax.random.key(0), problem.init(jax.random.key(0), ()), batch)
    >>> round(float(loss), 4)
    2.3026
    """
    inputs, classes = (
        _checks.positive_int("inputs", inputs),
        _checks.positive_int("classes", classes),
    )
    _checks.at_least_zero(penalty=penalty)
    init, apply = perceptron((inputs, classes), jax.nn.relu)
    plain = classifier(lambda key: jax.tree.map(jnp.zeros_like, init(key)), apply)

    def loss(key, params, batch):
        value, metrics = plain.loss(key, params, batch)
        return value + penalty / 2 * jnp.sum(params[0]["w"] ** 2), metrics

    return Problem(plain.init, loss)


def autoencoder(sizes: Sequence[int], activation: Callable = jax.nn.sigmoid) -> Problem:
    """An autoencoder of images with values in [0, 1], with a perceptron each way.

    The loss is the mean over all values of the squared error. Values come out through a sigmoid.
    Labels are not used.

    Args: sizes: units from the image to the code, e.g. ``(64, 32, 8)``; the decoder has the same in
      reverse. activation: between layers.

    >>> import jax, metajax as mx
    >>> problem = mx.problems.autoencoder((64, 8))
    >>> params = problem.init(jax.random.key(0), ())
    >>> [layer["w"].shape for layer in params]
    [(64, 8), (8, 64)]
    >>> batch = mx.tasks.minibatches(5).train(jax.random.key(0), mx.data.load("digits"), (), 0)
    >>> loss, metrics = problem.loss(jax.random.key(0), params, batch)
    """
    sizes = tuple(sizes)
    init, apply = perceptron((*sizes, *sizes[-2::-1]), activation)

    def loss(key, params, batch):
        image = batch["image"].reshape(len(batch["image"]), -1)
        return jnp.mean((jax.nn.sigmoid(apply(params, image)) - image) ** 2), {}

    return Problem(lambda key, task: init(key), loss)


def convnet(
    classes: int = 10,
    shape: Sequence[int] = (32, 32, 3),
    filters: Sequence[int] = (16, 16, 16),
    hidden: int = 32,
    kernel: int = 5,
) -> Problem:
    """The optimizee for CIFAR-10 of Andrychowicz et al. 2016 (section 3.3): a `classifier` with
    batch normalisation.

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
    >>> params = jax.eval_shape(mx.problems.convnet().init, jax.random.key(0), ())
    >>> len(params["conv"]), params["dense"][0]["w"].shape
    (3, (256, 32))
    """
    height, width, channels = (_checks.positive_int("shape", n) for n in shape)
    filters = tuple(_checks.positive_int("filters", n) for n in filters)
    classes, hidden = (
        _checks.positive_int("classes", classes),
        _checks.positive_int("hidden", hidden),
    )
    _checks.positive_int(kernel=kernel)
    features = (
        (height >> len(filters)) * (width >> len(filters)) * filters[-1]
        if filters
        else height * width * channels
    )
    if not features:
        raise ValueError(
            f"shape must be at least 2^{len(filters)} pixels high and wide for as many poolings, got {shape}"
        )

    kernels = [
        (kernel, kernel, m, n) for m, n in zip((channels, *filters[:-1]), filters, strict=True)
    ]
    groups = {"conv": kernels, "dense": [(features, hidden), (hidden, classes)]}

    def init(key):
        keys = iter(jax.random.split(key, len(filters) + 2))

        def layer(size):
            return {"w": 0.01 * draw_flat(next(keys), size), "b": jnp.zeros(size[-1])}

        return {name: [layer(size) for size in sizes] for name, sizes in groups.items()}

    def apply(params, x):
        if x.shape[1:] != (height, width, channels):
            raise ValueError(
                f"shape is {(height, width, channels)}, but an image is {tuple(x.shape[1:])}"
            )
        for layer in params["conv"]:
            x = jax.nn.relu(nets.transductive_batch_norm(nets.conv(x, layer["w"])) + layer["b"])
            x = nets.max_pool(x)
        first, last = params["dense"]
        x = nets.transductive_batch_norm(x.reshape(len(x), -1) @ first["w"])
        return jax.nn.relu(x + first["b"]) @ last["w"] + last["b"]

    return classifier(init, apply)


def character_gru(symbols: int, hidden: int = 64) -> Problem:
    """A recurrent language model of ``batch = {"text": [B, L + 1]}``, the tasks of
    `metajax.tasks.text`.

    One gated recurrent unit (Cho et al. 2014) reads a symbol at a time and predicts the next; the
    loss is the mean cross-entropy in nats, the metric ``accuracy``. Parameters: embeddings ``N(0,
    1)``, other weights ``N(0, 1 / fan_in)``, biases 0.

    Args:
      symbols: size of the alphabet.
      hidden: units, and values of an embedding.

    >>> import jax, metajax as mx
    >>> text = mx.data.sums()
    >>> problem, tasks = mx.problems.character_gru(len(text["alphabet"]), 8), mx.tasks.text(5, length=20)
    >>> batch = tasks.train(jax.random.key(0), text, tasks.sample(jax.random.key(1), text), 0)
    >>> loss, metrics = problem.loss(jax.random.key(0), problem.init(jax.random.key(0), ()), batch)
    """
    symbols, hidden = (
        _checks.positive_int("symbols", symbols),
        _checks.positive_int("hidden", hidden),
    )

    def init(key, task):
        k_in, k_x, k_h, k_out = jax.random.split(key, 4)
        return {
            "in": draw_flat(k_in, (symbols, hidden)),
            "x": draw_flat(k_x, (hidden, 3 * hidden)) / hidden**0.5,
            "h": draw_flat(k_h, (hidden, 3 * hidden)) / hidden**0.5,
            "b": jnp.zeros(3 * hidden),
            "out": {
                "w": draw_flat(k_out, (hidden, symbols)) / hidden**0.5,
                "b": jnp.zeros(symbols),
            },
        }

    def loss(key, params, batch):
        text = batch["text"]

        def read(h, x):
            reset, update, new = jnp.split(x, 3, -1)
            by_reset, by_update, by_new = jnp.split(h @ params["h"], 3, -1)
            z = jax.nn.sigmoid(update + by_update)
            h = z * h + (1 - z) * jnp.tanh(new + jax.nn.sigmoid(reset + by_reset) * by_new)
            return h, h

        x = params["in"][text[:, :-1].T] @ params["x"] + params["b"]  # [L, B, 3 H]
        _, h = jax.lax.scan(read, jnp.zeros((len(text), hidden), x.dtype), x)
        logits, target = h @ params["out"]["w"] + params["out"]["b"], text[:, 1:].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        return losses.mean(), {"accuracy": (logits.argmax(-1) == target).mean()}

    return Problem(init, loss)


def perceptron(sizes: Sequence[int], activation: Callable) -> tuple[Callable, Callable]:
    sizes = tuple(_checks.positive_int("sizes", n) for n in sizes)
    if len(sizes) < 2:
        raise ValueError(
            f"sizes must name at least the input and the output, e.g. (64, 20, 10), got {sizes}"
        )
    _checks.function(activation=activation)

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": draw_flat(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    def apply(params, images):
        x = images.reshape(images.shape[0], -1)
        if x.shape[1] != sizes[0]:
            raise ValueError(
                f"sizes[0] is {sizes[0]}, but an image {list(images.shape[1:])} has {x.shape[1]} values"
            )
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return init, apply
