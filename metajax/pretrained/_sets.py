"""The sets of parameters, and what each is the parameters of.

To add one: put ``NAME.npz`` (made by `metajax.save`) and ``NAME.md`` here, and a row below.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

from metajax import cells, nets, optim, problems
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax.cells import Layer
from metajax.io import load as load_tree
from metajax.learners import delta_rule, gpicl, maml, vsml
from metajax.pretrained import _celo_file
from metajax.types import Key, LearnedOptimizer, Learner, MetaParams, PyTree


class _Set(NamedTuple):
    """``init(key)`` gives a tree of the same structure, ``ready(meta_params)`` what users want."""

    init: Callable[[Key], MetaParams]
    ready: Callable[[MetaParams], Any]


def _learned_optimizer(optimizer: LearnedOptimizer) -> _Set:
    return _Set(optimizer.init, optimizer.tx)


def _l2l_digits() -> _Set:
    return _learned_optimizer(optim.lstm())


def _l2l_mnist() -> _Set:
    return _learned_optimizer(optim.nadam(knots=(1, 10, 30, 60, 100, 150, 200)))


def _celo2_images() -> _Set:
    return _Set(optim.celo2().init, _celo2_with_schedule)


def _celo2_with_schedule(meta_params: MetaParams) -> Callable[..., Any]:
    @checked
    def optimizer(
        num_steps: PositiveInt,
        rate: PositiveFloat = 3e-2,
        **options: Any,
    ) -> optax.GradientTransformation:
        warmup = num_steps // 20
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, num_steps)
        options = {"scale": optim.by_fan_in, "multiplier": 1.0} | options
        return optim.celo2(schedule, **options).tx(meta_params)

    return optimizer


def _vsml_network(*layers: int | Layer) -> Learner:
    return vsml(layers, cells.lstm(ticks=1), backward_pass=True)


def _vsml_networks(meta_params: MetaParams) -> Callable[..., Learner]:
    def network(*layers: int | Layer) -> Learner:
        _check_one_dense_layer(layers)
        return replace(_vsml_network(*layers), meta=lambda key: meta_params)

    return network


def _check_one_dense_layer(layers: tuple[int | Layer, ...]) -> None:
    is_sizes = len(layers) == 2 and all(isinstance(x, int) for x in layers)
    is_layer = (
        len(layers) == 1 and isinstance(layers[0], Layer) and layers[0].positions == 1
    )
    if not (is_sizes or is_layer):
        sizes = [x if isinstance(x, int) else (x.units, x.outputs) for x in layers]
        raise ValueError(
            f"vsml-mnist was meta-trained with one dense layer, (inputs, classes), e.g. (784, 10), "
            f"got {sizes}: with several layers or a convolution it does not learn. For those, "
            f"meta-train metajax.vsml with them, perhaps from "
            f"metajax.pretrained.params('vsml-mnist')"
        )


def _vsml_mnist() -> _Set:
    return _Set(_vsml_network(2, 2).meta, _vsml_networks)


def _learner(learner: Learner) -> _Set:
    def ready(meta_params: MetaParams) -> Learner:
        return replace(learner, meta=lambda key: meta_params)

    return _Set(learner.meta, ready)


def _maml_omniglot() -> _Set:
    net = nets.conv4(5, (28, 28, 1), 32)
    return _learner(maml(problems.classifier(*net), 0.4))


def _delta_rule_mnist() -> _Set:
    return _learner(delta_rule(14 * 14, 10))


def _gpicl_mnist() -> _Set:
    return _learner(gpicl(14 * 14, 10))


# Functions, so that importing them computes nothing.
_SETS: dict[str, Callable[[], _Set]] = {
    "celo2-images": _celo2_images,
    "delta-rule-mnist": _delta_rule_mnist,
    "gpicl-mnist": _gpicl_mnist,
    "l2l-digits": _l2l_digits,
    "l2l-mnist": _l2l_mnist,
    "maml-omniglot": _maml_omniglot,
    "vsml-mnist": _vsml_mnist,
}


def list() -> tuple[str, ...]:
    """The names of all sets.

    >>> import metajax as mx
    >>> "l2l-digits" in mx.pretrained.list()
    True
    """
    return tuple(sorted(_SETS))


@checked
def load(name: str) -> Any:
    """What a set is for, ready to use.

    ``l2l-*``: an `optax.GradientTransformation`, for `optax.chain`. ``celo2-*``: a function
    ``(num_steps, rate=, **options)`` that gives one for a run of so many steps, whose rate rises
    for a twentieth of them and falls to 0 by a cosine; the options are those of
    `metajax.optim.celo2`. ``vsml-*``: a function of the inputs and the classes of a network,
    ``(784, 10)`` say, that gives a `metajax.Learner`; it was meta-trained with one dense layer, and
    refuses several and convolutions.
    ``maml-*``, ``delta-rule-*``, ``gpicl-*``: a `metajax.Learner`; the card names the images and
    the classes it is for. The ``meta`` of these learners gives the parameters of the set.

    Raises:
      ValueError: an unknown name; from ``celo2-*``, no steps or a rate that is not above 0; from
        ``vsml-*``, other layers than it was meta-trained with.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), mx.pretrained.load("l2l-digits"))
    >>> weights = {"w": jnp.ones((3, 2))}
    >>> updates, state = tx.update(weights, tx.init(weights), weights)

    >>> tx = mx.pretrained.load("celo2-images")(num_steps=2_000)
    >>> updates, state = tx.update(weights, tx.init(weights), weights)

    >>> learner, digits = mx.pretrained.load("vsml-mnist")(64, 10), mx.data.load("digits")
    >>> loop = mx.inner(learner, mx.tasks.minibatches(1, test_size=32), horizon=50)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, digits, num_tasks=2)

    >>> learner, key = mx.pretrained.load("maml-omniglot"), jax.random.key(0)
    >>> meta_params = learner.meta(key)
    >>> drawings = {"image": jnp.zeros((5, 28, 28, 1)), "label": jnp.arange(5)}  # ink 1 on 0
    >>> state = learner.init(key, meta_params, ())
    >>> step = jax.jit(learner.step)
    >>> for _ in range(3):
    ...     state, loss, metrics = step(key, meta_params, state, drawings)
    >>> learner.predict(key, meta_params, state, drawings["image"]).shape
    (5, 5)
    """
    return _set(name).ready(params(name))


@checked
def params(name: str) -> PyTree:
    """The meta-parameters alone, e.g. to meta-train on from there.

    Raises:
      ValueError: an unknown name.

    >>> import jax, metajax as mx
    >>> sum(x.size for x in jax.tree.leaves(mx.pretrained.params("l2l-digits")))
    5141
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    like = jax.eval_shape(_set(name).init, key)
    return load_tree(_file(name, "npz"), like)


@checked
def card(name: str) -> str:
    """What a set was trained on and how, its figures and its limits, in Markdown.

    Raises:
      ValueError: an unknown name.

    >>> import metajax as mx
    >>> print(mx.pretrained.card("l2l-digits").splitlines()[0])
    # l2l-digits
    """
    _check_name(name)
    return _file(name, "md").read_text()


@checked
def read(path: str | os.PathLike, format: Literal["celo", "celo2"]) -> PyTree:
    """Meta-parameters from a file that others have published.

    ``"celo"`` and ``"celo2"``: the ``theta.state`` of the authors of Celo and of Celo2 (github
    amoudgl/celo, MIT; model hub, amoudgl/celo2 and amoudgl/celo2-base), for `metajax.optim.celo`,
    and for `metajax.optim.celo2` or `metajax.optim.celo2_base`. The file is data: nothing of it
    is run. What has no effect on the rule is left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a damaged file, or weights of another rule, of other shapes, or not finite.

    >>> import metajax as mx
    >>> def celo(path, num_steps):
    ...     return mx.optim.celo(num_steps).tx(mx.pretrained.read(path, format="celo"))
    """
    return _celo_file.read(Path(path), format)


def _set(name: str) -> _Set:
    _check_name(name)
    return _SETS[name]()


def _check_name(name: str) -> None:
    if name not in _SETS:
        raise ValueError(
            f"name must be one of {', '.join(sorted(_SETS))}, got {name!r}"
        )


def _file(name: str, suffix: str) -> Path:
    return Path(__file__).with_name(f"{name}.{suffix}")
