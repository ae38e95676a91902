"""What inner optimizers minimise."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from metajax import checks
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
        return jax.random.normal(key, (task["W"].shape[1],))

    def loss(key, params, batch):
        return jnp.sum((batch["W"] @ params - batch["y"]) ** 2), {}

    return Problem(init, loss)


def classifier(net_init: Callable, net_apply: Callable) -> Problem:
    """Softmax classification of ``batch = {"image": [B, ...], "label": [B]}`` by any ``(init, apply)`` pair.

    Args:
      net_init: ``(key) -> params``.
      net_apply: ``(params, images [B, ...]) -> logits [B, C]``.

    Returns:
      A problem whose loss is the mean cross-entropy in nats and whose metric is ``accuracy``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> problem = mx.problems.classifier(lambda key: jnp.zeros((64, 10)), lambda w, x: x.reshape(len(x), -1) @ w)
    >>> batch = {"image": jnp.ones((2, 8, 8)), "label": jnp.array([3, 7])}
    >>> loss, metrics = problem.loss(jax.random.key(0), jnp.zeros((64, 10)), batch)
    >>> round(float(loss), 4)
    2.3026
    """
    checks.function("net_init", net_init)
    checks.function("net_apply", net_apply)

    def init(key, task):
        return net_init(key)

    def loss(key, params, batch):
        logits = net_apply(params, batch["image"])
        if logits.ndim != 2 or logits.shape[0] != batch["label"].shape[0]:
            raise ValueError(
                f"net_apply must give logits [batch, classes]: for labels {list(batch['label'].shape)} it gave "
                f"{list(logits.shape)}"
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

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
    checks.function("net_init", net_init)
    checks.function("net_apply", net_apply)

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
    """A multilayer perceptron as a `classifier`; the optimizee of Andrychowicz et al. 2016, section 3.2.

    Weights ``N(0, 1 / fan_in)``, biases 0. The input is flattened.

    Args:
      sizes: units of each layer, input and output included, e.g. ``(64, 20, 10)``.
      activation: between layers, e.g. `jax.nn.sigmoid` or `jax.nn.relu`.

    >>> import jax, metajax as mx
    >>> params = mx.problems.mlp((64, 20, 10)).init(jax.random.key(0), ())
    >>> sum(x.size for x in jax.tree.leaves(params))
    1510
    """
    sizes = tuple(checks.positive_int("sizes", n) for n in sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes must name at least the input and the output, e.g. (64, 20, 10), got {sizes}")
    checks.function("activation", activation)

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    def apply(params, images):
        x = images.reshape(images.shape[0], -1)
        if x.shape[1] != sizes[0]:
            raise ValueError(f"sizes[0] is {sizes[0]}, but an image {list(images.shape[1:])} has {x.shape[1]} values")
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return classifier(init, apply)
