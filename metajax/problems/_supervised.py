"""Problems made from a model and an objective."""

from collections.abc import Callable

from metajax import _checks
from metajax._arguments import check, checked
from metajax._losses import (
    at_least_float32,
    blank_masked,
    cross_entropy_and_accuracy,
    masked_mean,
)
from metajax.types import (
    Array,
    Batch,
    Inputs,
    Key,
    Metrics,
    ModelState,
    Params,
    Problem,
    PyTree,
    Task,
    no_predictions,
)

Apply = Callable[[Key, Params, ModelState, Inputs, bool], tuple[PyTree, ModelState]]
Objective = Callable[[PyTree, Batch], tuple[Array, Metrics]]


@checked
def stateless(
    init: Callable[[Key, Task], Params],
    loss: Callable[[Key, Params, Batch], tuple[Array, Metrics]],
    predict: Callable[[Params, Inputs], PyTree] = no_predictions,
) -> Problem:
    """A problem without a state, the same in training and in evaluation.

    Args:
      init: ``(key, task) -> params``.
      loss: ``(key, params, batch) -> (loss, metrics)``, a scalar and a dict of scalars.
      predict: ``(params, inputs) -> outputs``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> bowl = mx.problems.stateless(
    ...     init=lambda key, task: jax.random.normal(key, (3,)),
    ...     loss=lambda key, x, batch: (jnp.sum((x - batch) ** 2), {}))
    >>> params, model_state = bowl.init(jax.random.key(0), ())
    >>> loss, metrics = bowl.test(jax.random.key(1), params, model_state, jnp.zeros(3))
    """
    _checks.takes("init", init, "key, task")
    _checks.takes("loss", loss, "key, params, batch")

    def init_both(key, task):
        return init(key, task), ()

    def training_loss(key, params, model_state, batch):
        result = loss(key, params, batch)
        _checks.returned("problem.loss", result, "loss, metrics")
        value, metrics = result
        return value, (metrics, model_state)

    def test(key, params, model_state, batch):
        del model_state
        return loss(key, params, batch)

    def predict_outputs(key, params, model_state, inputs):
        del key, model_state
        return predict(params, inputs)

    return Problem(init_both, training_loss, test, predict_outputs)


@checked
def supervised(
    init: Callable[[Key], tuple[Params, ModelState]],
    apply: Apply,
    objective: Objective,
    inputs: str = "image",
) -> Problem:
    """A problem from a model that may have a state and differ in training and in evaluation.

    The state that an episode begins with is that of ``init``; each training batch moves it on, and
    evaluation leaves it. It is never among the parameters, and no gradient is taken of it. What a
    model gives in fewer bits than float32 has is made float32 before it is judged.

    Args:
      init: ``(key) -> (params, model_state)``.
      apply: ``(key, params, model_state, inputs, training) -> (outputs, model_state)``.
      objective: ``(outputs, batch) -> (loss, metrics)``, such as `cross_entropy`.
      inputs: the entry of a batch that the model sees.

    Dropout, and a running mean:

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> def init(key):
    ...     return jnp.zeros((64, 10)), {"mean": jnp.zeros(64)}
    >>> def apply(key, w, state, images, training):
    ...     x = images.reshape(len(images), -1)
    ...     if training:
    ...         state = {"mean": 0.9 * state["mean"] + 0.1 * x.mean(0)}
    ...         x = x * jax.random.bernoulli(key, 0.8, x.shape)
    ...     return (x - state["mean"]) @ w, state
    >>> problem = mx.problems.supervised(init, apply, mx.problems.cross_entropy)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> batch = {"image": jnp.ones((2, 8, 8, 1)), "label": jnp.array([3, 7])}
    >>> loss, (metrics, new) = problem.loss(jax.random.key(1), params, model_state, batch)
    >>> round(float(new["mean"][0]), 3)
    0.1
    """
    _checks.takes("init", init, "key")
    _checks.takes("apply", apply, "key, params, model_state, inputs, training")
    _checks.takes("objective", objective, "outputs, batch")

    def init_for_task(key, task):
        del task  # networks start alike, whatever they are to learn
        return init(key)

    def with_inputs(batch):
        batch = blank_masked(batch)
        _checks.entries("batch", batch, (inputs,), "tasks that go with the problem")
        return batch

    def loss(key, params, model_state, batch):
        batch = with_inputs(batch)
        outputs, model_state = apply(key, params, model_state, batch[inputs], True)
        value, metrics = objective(at_least_float32(outputs), batch)
        return value, (metrics, model_state)

    def test(key, params, model_state, batch):
        batch = with_inputs(batch)
        outputs = predict(key, params, model_state, batch[inputs])
        return objective(outputs, batch)

    def predict(key, params, model_state, x):
        outputs, _ = apply(key, params, model_state, x, False)
        return at_least_float32(outputs)

    return Problem(init_for_task, loss, test, predict)


@checked
def cross_entropy(logits: Array, batch: Batch) -> tuple[Array, Metrics]:
    """The mean cross-entropy of ``logits [B, C]`` and ``batch["label"] [B]`` in nats.

    The metric is ``accuracy``. A label out of range is an error or, where it is traced, a loss of
    NaN. Examples whose ``batch["mask"]`` is False do not count.

    >>> import jax.numpy as jnp, metajax as mx
    >>> loss, metrics = mx.problems.cross_entropy(jnp.zeros((2, 10)), {"label": jnp.array([3, 7])})
    >>> round(float(loss), 4)
    2.3026
    """
    _checks.entries("batch", batch, ("label",), "tasks of labelled images")
    label = batch["label"]
    check(Array, **{"batch['label']": label})
    if logits.ndim != 2 or logits.shape[0] != label.shape[0]:
        raise ValueError(
            f"net_apply must give logits [batch, classes]: for labels {list(label.shape)} it gave "
            f"{list(logits.shape)}"
        )
    return cross_entropy_and_accuracy(logits, label, batch.get("mask"))


@checked
def squared_error(predictions: Array, batch: Batch) -> tuple[Array, Metrics]:
    """The mean over all values of the squared error of ``batch["y"]``, with no factor 1/2.

    Examples whose ``batch["mask"]`` is False do not count.

    >>> import jax.numpy as jnp, metajax as mx
    >>> loss, metrics = mx.problems.squared_error(jnp.ones((4, 1)), {"y": jnp.zeros((4, 1))})
    >>> float(loss)
    1.0
    """
    _checks.entries("batch", batch, ("y",), "tasks of a regression")
    y = batch["y"]
    check(Array, **{"batch['y']": y})
    if predictions.shape != y.shape:  # [B] from [B, 1] would broadcast to [B, B]
        raise ValueError(
            f"net_apply must give predictions of the shape of y, {list(y.shape)}; it gave "
            f"{list(predictions.shape)}"
        )
    error = at_least_float32(predictions) - y
    return masked_mean(error**2, batch.get("mask")), {}


@checked
def classifier(
    net_init: Callable[[Key], Params], net_apply: Callable[[Params, Array], Array]
) -> Problem:
    """Softmax classification of ``{"image": [B, ...], "label": [B]}`` by any ``(init, apply)``.

    The loss is `cross_entropy`. For a network with a state or a mode take `supervised`.

    Args:
      net_init: ``(key) -> params``.
      net_apply: ``(params, images [B, ...]) -> logits [B, C]``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> def apply(w, images):
    ...     return images.reshape(len(images), -1) @ w
    >>> problem = mx.problems.classifier(lambda key: jnp.zeros((64, 10)), apply)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> problem.predict(jax.random.key(1), params, model_state, jnp.ones((2, 8, 8))).shape
    (2, 10)
    """
    init, apply = _without_state(net_init, net_apply)
    return supervised(init, apply, cross_entropy, inputs="image")


@checked
def regressor(
    net_init: Callable[[Key], Params], net_apply: Callable[[Params, Array], Array]
) -> Problem:
    """Regression of ``{"x": [B, ...], "y": [B, ...]}`` by any ``(init, apply)``.

    The loss is `squared_error`. For a network with a state or a mode take `supervised`.

    Args:
      net_init: ``(key) -> params``.
      net_apply: ``(params, x [B, ...]) -> predictions``, of the shape of ``y``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> problem = mx.problems.regressor(lambda key: jnp.ones((3, 1)), lambda w, x: x @ w)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> batch = {"x": jnp.ones((4, 3)), "y": jnp.ones((4, 1))}
    >>> loss, metrics = problem.test(jax.random.key(1), params, model_state, batch)
    >>> float(loss)
    4.0
    """
    init, apply = _without_state(net_init, net_apply)
    return supervised(init, apply, squared_error, inputs="x")


def _without_state(net_init: Callable, net_apply: Callable) -> tuple[Callable, Apply]:
    def init(key):
        return net_init(key), ()

    def apply(key, params, model_state, inputs, training):
        del key, training
        return net_apply(params, inputs), model_state

    return init, apply
