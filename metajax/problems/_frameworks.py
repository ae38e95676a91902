"""Problems from models of flax and equinox: their parameters, their state, their keys, their mode.

Convolutions and initializers are compiled as `metajax.nets.for_vmap` says.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import checked
from metajax.nets import for_vmap
from metajax.problems._supervised import Apply, Objective, cross_entropy, supervised
from metajax.types import Key, Problem, PyTree

# Arguments of a linen module that say whether it is training, and those that say the opposite.
_TRAINING = ("training", "train", "is_training")
_EVALUATION = ("deterministic", "use_running_average")


@checked
def nnx(
    make: Callable[[Any], Any],
    objective: Objective = cross_entropy,
    inputs: str = "image",
) -> Problem:
    """A problem from a model of `flax.nnx`, with whatever layers it has.

    Parameters are its ``nnx.Param``, a dict of dicts with the names of its attributes; its random
    keys come from the key of each call, anew; all other variables, such as the statistics of
    ``nnx.BatchNorm``, are its state, which training moves on. Training is ``model.train()``,
    evaluation ``model.eval()``. What a call writes into its own parameters, as that of
    ``nnx.SpectralNorm`` does, serves that call alone. ``nnx.update(model, params)`` gives learned
    parameters back to a model.

    Args:
      make: ``(nnx.Rngs) -> model``, where ``model(inputs [B, ...]) -> outputs``.
      objective: ``(outputs, batch) -> (loss, metrics)``.
      inputs: the entry of a batch that the model sees.

    Raises:
      ImportError: flax is not there.

    >>> import jax, metajax as mx
    >>> from flax import nnx
    >>> def make(rngs):
    ...     return nnx.Sequential(
    ...         lambda images: images.reshape(len(images), -1), nnx.Linear(64, 8, rngs=rngs),
    ...         nnx.BatchNorm(8, rngs=rngs), nnx.relu, nnx.Dropout(0.2, rngs=rngs),
    ...         nnx.Linear(8, 10, rngs=rngs))
    >>> loop = mx.inner(mx.maml(mx.problems.nnx(make), rate=0.4), mx.tasks.minibatches(20), 5)
    >>> params = mx.problems.nnx(make).init(jax.random.key(0), ())[0]
    >>> curves = mx.evaluate(loop, jax.random.key(1), params, mx.data.load("digits"))
    >>> sorted(curves.state.learner.model_state["layers"][2])
    ['mean', 'var']
    """
    nnx = _framework("flax.nnx")
    if isinstance(make, nnx.Module):
        raise TypeError(
            "make must be a function that makes the model, e.g. lambda rngs: Net(rngs=rngs), got a "
            "model"
        )

    def split(model):
        """The graph, the parameters, the random keys and the state."""
        graph, *parts = nnx.split(model, nnx.Param, nnx.RngState, ...)
        return graph, *map(nnx.to_pure_dict, parts)

    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    _check_call(model, ())
    for _, node in nnx.iter_graph(model):
        _check_holds_no_array(node)
    model.train()
    train_graph, _, streams, _ = split(model)
    model.eval()
    test_graph, *_ = split(model)

    def init(key):
        _, params, _, state = split(make(nnx.Rngs(key)))
        return params, state

    def apply(key, params, state, x, training):
        graph = train_graph if training else test_graph
        model = nnx.merge(graph, params, _fresh(streams, key), state)
        outputs = model(x)
        nnx.pop(model, nnx.Intermediate)  # what it shows of itself is no state
        _, _, _, state = split(model)
        return outputs, state

    return _problem(init, apply, objective, inputs)


def _check_holds_no_array(node: Any) -> None:
    for name, value in getattr(node, "__dict__", {}).items():
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"{type(node).__name__}.{name} is an array that is made with the model and is "
                f"neither parameter nor state: make it nnx.Variable({name}), or a NumPy array"
            )


def _fresh(streams: PyTree, key: Key) -> PyTree:
    """Random keys like the ``streams`` of a model, and their counts at zero."""
    leaves, structure = jax.tree.flatten(streams)
    fresh = []
    for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        make = jax.random.split(k, leaf.shape) if is_key else jnp.zeros_like(leaf)
        fresh.append(make)
    return jax.tree.unflatten(structure, fresh)


@checked
def linen(
    module: Any,
    shape: Sequence[int],
    objective: Objective = cross_entropy,
    inputs: str = "image",
) -> Problem:
    """A problem from a module of `flax.linen`, with whatever layers it has.

    The collection ``params`` are the parameters; all other collections, such as ``batch_stats``,
    are its state, which training moves on. A random key is there under any name. Which of training
    and evaluation it is, the module is told by those arguments of its ``__call__`` that are named
    ``training``, ``train``, ``is_training``, ``deterministic`` or ``use_running_average``.

    Args:
      module: ``module(inputs [B, ...], training=True) -> outputs``, say.
      shape: of one input, e.g. ``(28, 28, 1)``.
      objective: ``(outputs, batch) -> (loss, metrics)``.
      inputs: the entry of a batch that the module sees.

    Raises:
      ImportError: flax is not there.

    >>> import jax, metajax as mx
    >>> from flax import linen
    >>> class Net(linen.Module):
    ...     @linen.compact
    ...     def __call__(self, images, training):
    ...         x = linen.Dense(8)(images.reshape(len(images), -1))
    ...         x = linen.BatchNorm(use_running_average=not training)(x)
    ...         x = linen.Dropout(0.2, deterministic=not training)(linen.relu(x))
    ...         return linen.Dense(10)(x)
    >>> problem = mx.problems.linen(Net(), (8, 8, 1))
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> sorted(params), sorted(model_state)
    (['BatchNorm_0', 'Dense_0', 'Dense_1'], ['batch_stats'])
    """
    linen = _framework("flax.linen")
    if not isinstance(module, linen.Module):
        got = _checks.describe(module)
        raise TypeError(f"module must be a flax.linen.Module, e.g. Net(), got {got}")
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1), any_length=True)
    told = inspect.signature(type(module).__call__).parameters
    _check_call(module, (*_TRAINING, *_EVALUATION))

    def mode(training):
        flags = dict.fromkeys(_TRAINING, training)
        flags |= dict.fromkeys(_EVALUATION, not training)
        return {name: flag for name, flag in flags.items() if name in told}

    def rngs(key):  # the stream "params" stands for all that have no name of their own
        k_params, k_dropout = jax.random.split(key)
        return {"params": k_params, "dropout": k_dropout}

    def init(key):
        example = jnp.zeros((1, *shape))
        variables = module.init(rngs(key), example, **mode(training=False))
        state = {name: x for name, x in variables.items() if name != "params"}
        return variables.get("params", {}), state

    def apply(key, params, state, x, training):
        outputs, new = module.apply(
            {"params": params, **state},
            x,
            rngs=rngs(key),
            mutable=list(state),
            **mode(training),
        )
        return outputs, {**state, **new}

    return _problem(init, apply, objective, inputs)


@checked
def equinox(
    make: Callable[[Key], Any],
    objective: Objective = cross_entropy,
    inputs: str = "image",
) -> Problem:
    """A problem from a model of `equinox`, with whatever layers it has.

    Parameters are its arrays of floating point, a tree like the model: ``eqx.combine(params,
    make(key))`` is the model that was learned. Its state, which training moves on, are its other
    arrays and that of its stateful layers, such as ``eqx.nn.BatchNorm``. The model is of one
    example; it runs under a `jax.vmap` whose ``axis_name`` is ``"batch"``. Evaluation is
    ``eqx.nn.inference_mode``. Divided over devices by `metajax.sharding.split`, stateful layers are
    refused by a check of equinox itself; other models are not.

    Args:
      make: ``(key) -> model``, where ``model(x) -> outputs``, ``model(x, key=key)`` if its call
        takes a key, and ``model(x, state, ...) -> (outputs, state)`` if it has stateful layers.
      objective: ``(outputs, batch) -> (loss, metrics)``, of a whole batch.
      inputs: the entry of a batch that the model sees.

    Raises:
      ImportError: equinox is not there.

    >>> import equinox as eqx, jax, metajax as mx
    >>> def make(key):
    ...     return eqx.nn.Sequential([eqx.nn.Lambda(lambda image: image.ravel()),
    ...         eqx.nn.Linear(64, 10, key=key), eqx.nn.BatchNorm(10, "batch", mode="batch")])
    >>> problem = mx.problems.equinox(make)
    >>> params, model_state = problem.init(jax.random.key(0), ())
    >>> params.layers[1].weight.shape
    (10, 64)
    """
    eqx = _framework("equinox")
    make_both = eqx.nn.make_with_state(make)

    def split(model):
        """The parameters, the other arrays, and what is no array."""
        params = eqx.filter(model, _is_floating)
        others = eqx.filter(model, lambda x: _is_array(x) and not _is_floating(x))
        return params, others, eqx.filter(model, _is_array, inverse=True)

    model, stateful = eqx.filter_eval_shape(make_both, jax.random.key(0))
    *arrays, static = split(model)
    structures = [jax.tree.structure(part) for part in (*arrays, stateful)]
    is_stateful = bool(jax.tree.leaves(stateful))
    takes_key = "key" in inspect.signature(type(model).__call__).parameters
    _check_call(model, ("key",), num_inputs=1 + is_stateful)

    def init(key):
        model, stateful = make_both(key)
        params, others, _ = split(model)
        # Two models that were made alike may differ in what is no array, such as a lambda.
        params = jax.tree.unflatten(structures[0], jax.tree.leaves(params))
        return params, (jax.tree.leaves(others), jax.tree.leaves(stateful))

    def apply(key, params, state, x, training):
        others, stateful = map(jax.tree.unflatten, structures[1:], state)
        model = eqx.combine(params, others, static)
        model = eqx.nn.inference_mode(model, not training)

        def one(x, key):
            keys = {"key": key} if takes_key else {}
            if is_stateful:
                return model(x, stateful, **keys)
            return model(x, **keys), stateful

        keys = jax.random.split(key, len(x))
        run = jax.vmap(one, out_axes=(0, None), axis_name="batch")
        outputs, stateful = run(x, keys)
        return outputs, (state[0], jax.tree.leaves(stateful))

    return _problem(init, apply, objective, inputs)


def _check_call(model: Any, named: Sequence[str], num_inputs: int = 1) -> None:
    """After its inputs, what a call of the model must be given may only be what is ``named``."""
    signature = inspect.signature(type(model).__call__)
    _, *parameters = signature.parameters.values()
    for parameter in parameters[num_inputs:]:
        is_variadic = parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        is_needed = parameter.default is parameter.empty and not is_variadic
        if is_needed and parameter.name not in named:
            known = f" or is named {', '.join(named)}" if named else ""
            raise TypeError(
                f"after its inputs {type(model).__name__}.__call__ may only need what has a "
                f"default{known}, got {parameter.name}; give it a default"
            )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | jax.ShapeDtypeStruct)


def _is_floating(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact)


def _framework(name: str) -> Any:
    """The module of that name, imported where it is needed."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"metajax.problems.{name.rpartition('.')[2]} needs {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def _problem(
    init: Callable, apply: Apply, objective: Objective, inputs: str
) -> Problem:
    """The problem of ``init`` and ``apply``, compiled well under `jax.vmap`."""

    def apply_for_vmap(key, params, model_state, x, training):
        def run(key, params, model_state, x):
            return apply(key, params, model_state, x, training)

        return for_vmap(run)(key, params, model_state, x)

    return supervised(for_vmap(init), apply_for_vmap, objective, inputs)
