"""Small examples of every learner and every estimator, for the contract that all of them keep.

A new part is not added here but in its own test file: what ``tests/test_*.py`` defines as
``LEARNERS = {...}`` or ``ESTIMATORS = {...}``, from the beginning of a line, is found by
`learners` and `estimators`, and the contract (``test_contract.py``) covers it:

    LEARNERS = {"sign_descent": System(mx.sign_descent(MLP, 0.1), MINIBATCHES, IMAGES)}
    ESTIMATORS = {"spsa": lambda inner, meta_params: mx.spsa(inner, 3, 1e-3)}

A learner comes with tasks and their data, and its ``meta`` must work; episodes have 4 steps. An
estimator is a function ``(inner, meta_params) -> Estimator``. Names must be new.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import CMA_ES, Open_ES

import metajax as mx


class System(NamedTuple):
    """A learner, tasks for it, and what those draw from."""

    learner: mx.Learner
    tasks: mx.Tasks
    data: Any = ()

    def inner(self, meta_loss: str = "online") -> mx.Inner:
        return mx.inner(self.learner, self.tasks, 4, meta_loss)

    def meta_params(self) -> Any:
        return jax.jit(self.learner.meta)(jax.random.key(7))


def learners() -> dict[str, System]:
    """All systems, by name: those below and those of the test files."""
    return LEARNERS | _of_test_files("LEARNERS", LEARNERS)


def estimators() -> dict[str, Callable]:
    """All estimators, by name: those below and those of the test files."""
    return ESTIMATORS | _of_test_files("ESTIMATORS", ESTIMATORS)


def _of_test_files(variable: str, known: dict) -> dict:
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if re.search(rf"^{variable} = {{", path.read_text(), re.MULTILINE):
            more = getattr(importlib.import_module(path.stem), variable)
            assert not more.keys() & (known | found).keys(), (
                f"{path.name} has a name of others"
            )
            found |= more
    return found


IMAGES = {
    "image": np.random.default_rng(0).integers(0, 256, (32, 2, 2, 1)).astype(np.uint8),
    "label": np.arange(32, dtype=np.int32) % 3,
}
MINIBATCHES = mx.tasks.minibatches(5, test_size=5)
MLP = mx.problems.mlp((4, 3))


def in_context(learner):
    tasks = mx.tasks.permute_labels(mx.tasks.classification(2, test_size=4), 3)
    return System(learner, tasks, mx.data.by_class(IMAGES))


def few_shot(learner, tasks=MINIBATCHES):
    return System(learner, tasks, IMAGES)


def sgd_rate():
    learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    return replace(learner, meta=lambda key: jnp.float32(0.01))


def normalised(with_dropout):
    """A model that keeps a running mean, and drops some of what it sees in training."""

    def init(key):
        return 0.1 * jax.random.normal(key, (4, 3)), {"mean": jnp.zeros(4)}

    def apply(key, w, state, images, training):
        x = images.reshape(len(images), -1)
        if training:
            state = {"mean": 0.9 * state["mean"] + 0.1 * x.mean(0)}
            if with_dropout:
                x = x * jax.random.bernoulli(key, 0.8, x.shape)
        return (x - state["mean"][None]) @ w, state

    return mx.problems.supervised(init, apply, mx.problems.cross_entropy)


def embedding():
    def init(key):
        return jax.random.normal(key, (4, 3)) / 2

    def apply(w, images):
        return images.reshape(len(images), -1) @ w

    return init, apply


def imaml(problem):
    solver = mx.implicit.descend(optax.sgd(0.1), 2)
    return mx.imaml(problem, solver, mx.implicit.cg(2), 1.0)


LEARNERS = {
    "l2l_lstm": few_shot(mx.l2l(mx.optim.lstm(hidden=(3,)), MLP)),
    "l2l_lstm_second_order": System(
        mx.l2l(
            mx.optim.lstm(hidden=(2,), p=None),
            mx.problems.quadratic(),
            second_order=True,
        ),
        mx.tasks.quadratics(2),
    ),
    "sgd_rate": System(sgd_rate(), mx.tasks.quadratics(2)),
    "vsml": in_context(mx.vsml((4, 3), mx.cells.lstm(2, 2, ticks=1))),
    "meta_rnn": in_context(mx.meta_rnn(4, 3, hidden=2, ticks=1)),
    "hebbian": in_context(mx.hebbian(4, 3)),
    "fast_weight_memory": in_context(mx.fast_weight_memory(4, 3, hidden=2, size=2)),
    "external_memory": in_context(mx.external_memory(4, 3, hidden=2, slots=2, width=2)),
    "maml": few_shot(mx.maml(MLP, 0.1)),
    "maml_with_model_state": few_shot(mx.maml(normalised(with_dropout=True), 0.1)),
    "maml_ragged": few_shot(mx.maml(MLP, 0.1), mx.tasks.ragged(MINIBATCHES, 2)),
    "anil": few_shot(mx.anil(MLP, 0.1, lambda name: name == "0/b")),
    "meta_sgd": few_shot(mx.meta_sgd(MLP, 0.1)),
    "maml_plus_plus": few_shot(
        mx.maml_plus_plus(MLP, mx.step_weights(4, 0.5), 0.1),
        mx.tasks.with_query(MINIBATCHES),
    ),
    "reptile": few_shot(mx.reptile(MLP, optax.sgd(0.1))),
    "imaml": few_shot(imaml(MLP)),
    "imaml_with_model_state": few_shot(imaml(normalised(with_dropout=False))),
    "protonet": few_shot(mx.protonet(embedding(), 3, 3)),
    "ridge": few_shot(mx.ridge(embedding(), 3, 3)),
}

ESTIMATORS = {
    "bptt": lambda inner, _: mx.bptt(inner, 3),
    "bptt_nested": lambda inner, _: mx.bptt(inner, 3, remat="nested"),
    "bptt_binomial": lambda inner, _: mx.bptt(inner, 3, remat=2),
    "bptt_truncated": lambda inner, _: mx.bptt(inner, 3, 2),
    "bptt_staggered": lambda inner, _: mx.bptt(inner, 3, 2, stagger=True),
    "forward": lambda inner, _: mx.forward(inner, 3),
    "es": lambda inner, _: mx.es(inner, 3, 1e-3),
    "pes": lambda inner, _: mx.pes(inner, 3, 1e-3, 2),
    "noise_reuse_es": lambda inner, _: mx.noise_reuse_es(inner, 4, 1e-3, 2),
    "guided_es": lambda inner, _: mx.guided_es(
        inner, 3, 1e-3, surrogate=mx.bptt(inner, 1)
    ),
    "mix": lambda inner, _: mx.mix([mx.bptt(inner, 2), mx.es(inner, 2, 1e-3)]),
    "open_es": lambda inner, m: mx.ask_tell(inner, Open_ES(4, solution=m), 2),
    "cma_es": lambda inner, m: mx.ask_tell(inner, CMA_ES(4, solution=m), 2),
}

HELDOUT = {"bptt", "es", "open_es"}  # one of each kind, with the loss on the test batch
# All estimators meet these learners, and all learners meet a gradient and an evolution strategy.
MEET_ALL = ("sgd_rate", "l2l_lstm", "vsml", "imaml")
OF_EACH_KIND = {("bptt", "heldout"), ("es", "online")}
# Of the others, which are compiled and run and not only traced.
RUN = {
    ("forward", "online"),
    ("pes", "online"),
    ("uoro", "online"),
    ("cma_es", "online"),
}
