"""Meta-trained parameters that come with the package, each with a card: no download, no pickle,
Apache-2.0.

A card says what a set was trained on and how, what it reached, and where it fails. To add a set:
put ``NAME.npz`` (made by `metajax.save`) and ``NAME.md`` here and say below what it is the
parameters of.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from metajax import cells, nets, problems
from metajax.cells import Layer
from metajax.io import load as load_tree
from metajax.learners import maml, vsml
from metajax.optim import lstm, nadam
from metajax.types import InContext, LearnedOptimizer, PyTree


class _Set(NamedTuple):
    init: Callable[..., PyTree]  # (key) -> a tree of the same structure
    ready: Callable[..., Any]  # (meta_params) -> what a user wants to have


def _vsml(*layers: int | Layer) -> InContext:
    return vsml(layers, cells.lstm(ticks=1), backward_pass=True)


def _vsml_with(meta_params: PyTree) -> Callable[..., InContext]:
    return lambda *layers: _vsml(*layers)._replace(init=lambda key: meta_params)


def _nadam() -> LearnedOptimizer:
    return nadam(knots=(1, 10, 30, 60, 100, 150, 200))


_CONV4 = nets.conv4(5, (28, 28, 1), 32)

_SETS = {
    "l2l-digits": _Set(lambda key: lstm().init(key), lambda meta_params: lstm().tx(meta_params)),
    "l2l-mnist": _Set(lambda key: _nadam().init(key), lambda meta_params: _nadam().tx(meta_params)),
    "maml-omniglot": _Set(
        _CONV4.init, lambda meta_params: (maml(problems.classifier(*_CONV4), 0.4), meta_params)
    ),
    "vsml-mnist": _Set(lambda key: _vsml(2, 2).init(key), _vsml_with),
}


def list() -> tuple[str, ...]:
    """The names of all sets.

    >>> import metajax as mx
    >>> "l2l-digits" in mx.pretrained.list()
    True
    """
    return tuple(sorted(_SETS))


def load(name: str) -> Any:
    """What a set is for, ready to use.

    ``l2l-*``: an `optax.GradientTransformation`, for `optax.chain`. ``vsml-*``: a function of the
    sizes of a network (or its layers), ``(784, 10)`` say, that gives a `metajax.InContext` with the
    parameters in it. ``maml-*``: a `metajax.Learner` and its meta-parameters; the card names the
    images and the classes it is for.

    Raises:
      ValueError: an unknown name.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), mx.pretrained.load("l2l-digits"))
    >>> weights = {"w": jnp.ones((3, 2))}
    >>> updates, state = tx.update(weights, tx.init(weights), weights)

    >>> net = mx.pretrained.load("vsml-mnist")(64, 10)
    >>> loop = mx.inner(net.learner, mx.tasks.minibatches(1), horizon=200)
    >>> curves = mx.evaluate(loop, jax.random.key(0), net.init(jax.random.key(1)), mx.data.load("digits"), num_tasks=2)

    >>> learner, meta_params = mx.pretrained.load("maml-omniglot")
    >>> drawings = {"image": jnp.zeros((5, 28, 28, 1)), "label": jnp.arange(5)}  # one a class, ink 1 on 0
    >>> state = learner.init(jax.random.key(0), meta_params, None)
    >>> for _ in range(3):
    ...     state, loss, metrics = learner.step(jax.random.key(1), meta_params, state, drawings)
    >>> logits = mx.nets.conv4(5, (28, 28, 1), 32).apply(state.params, drawings["image"])
    """
    return _set(name).ready(params(name))


def params(name: str) -> PyTree:
    """The meta-parameters alone, e.g. to meta-train on from there.

    Raises:
      ValueError: an unknown name.

    >>> import jax, metajax as mx
    >>> sum(x.size for x in jax.tree.leaves(mx.pretrained.params("l2l-digits")))
    5141
    """
    like = jax.eval_shape(_set(name).init, jax.eval_shape(lambda: jax.random.key(0)))
    return load_tree(_file(name, "npz"), like)


def card(name: str) -> str:
    """What a set was trained on and how, its figures and its limits, in Markdown.

    Raises:
      ValueError: an unknown name.

    >>> import metajax as mx
    >>> print(mx.pretrained.card("l2l-digits").splitlines()[0])
    # l2l-digits
    """
    _set(name)
    return _file(name, "md").read_text()


def _set(name: str) -> _Set:
    if name not in _SETS:
        raise ValueError(f"name must be one of {', '.join(sorted(_SETS))}, got {name!r}")
    return _SETS[name]


def _file(name: str, suffix: str) -> Path:
    return Path(__file__).with_name(f"{name}.{suffix}")
