"""Small examples of every learner and every estimator: a new one is added here and is covered by
the contract.

A learner is a function ``meta_loss -> (inner of horizon 4, meta_params, data)``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import CMA_ES, Open_ES

import metajax as mx

IMAGES = {
    "image": np.random.default_rng(0).integers(0, 256, (32, 2, 2, 1)).astype(np.uint8),
    "label": np.arange(32, dtype=np.int32) % 3,
}


def l2l_lstm(meta_loss):
    optimizer = mx.optim.lstm(hidden=(3,))
    learner = mx.l2l(optimizer, mx.problems.mlp((4, 3)))
    return mx.inner(learner, mx.tasks.minibatches(5), 4, meta_loss), start(learner), IMAGES


def l2l_lstm_second_order(meta_loss):
    optimizer = mx.optim.lstm(hidden=(2,), p=None)
    learner = mx.l2l(optimizer, mx.problems.quadratic(), second_order=True)
    return mx.inner(learner, mx.tasks.quadratics(2), 4, meta_loss), start(learner), ()


def sgd_rate(meta_loss):
    learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    return mx.inner(learner, mx.tasks.quadratics(2), 4, meta_loss), jnp.float32(0.01), ()


def imitation(meta_loss):
    learner = mx.imitate(mx.optim.lstm(hidden=(2,)), optax.adam(0.1), mx.problems.quadratic())
    return mx.inner(learner, mx.tasks.quadratics(2), 4, meta_loss), start(learner), ()


def start(learner):
    return learner.meta(jax.random.key(7))


def in_context(learner):
    def example(meta_loss):
        tasks = mx.tasks.permute_labels(mx.tasks.classification(2, test_size=4), 3)
        inner = mx.inner(learner, tasks, 4, meta_loss)
        return inner, start(learner), mx.data.by_class(IMAGES)

    return example


def few_shot(make, arrange=lambda tasks: tasks, problem=mx.problems.mlp((4, 3))):  # noqa: B008
    """A learner made from a problem, on minibatches."""

    def system(meta_loss):
        learner = make(problem)
        tasks = arrange(mx.tasks.minibatches(5, test_size=5))
        return mx.inner(learner, tasks, 4, meta_loss), start(learner), IMAGES

    return system


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
        return (x - state["mean"]) @ w, state

    return mx.problems.supervised(init, apply, mx.problems.cross_entropy)


def embedding():
    def init(key):
        return jax.random.normal(key, (4, 3)) / 2

    def apply(w, images):
        return images.reshape(len(images), -1) @ w

    return init, apply


def learned_penalty(problem):
    def penalised(log_strength, key, params, model_state, batch):
        loss, _ = problem.loss(key, params, model_state, batch)
        return loss + jnp.exp(log_strength) * optax.tree.norm(params, squared=True)

    return mx.learned_loss(
        lambda problem: mx.maml(problem, 0.1), problem, penalised, lambda key: jnp.float32(-3.0)
    )


def imaml(problem):
    solver = mx.implicit.descend(optax.sgd(0.1), 2)
    return mx.imaml(problem, solver, mx.implicit.cg(2), 1.0)


LEARNERS = {
    "l2l_lstm": l2l_lstm,
    "l2l_lstm_second_order": l2l_lstm_second_order,
    "sgd_rate": sgd_rate,
    "imitate": imitation,
    "vsml": in_context(mx.vsml((4, 3), mx.cells.lstm(2, 2, ticks=1))),
    "meta_rnn": in_context(mx.meta_rnn(4, 3, hidden=2, ticks=1)),
    "hebbian": in_context(mx.hebbian(4, 3)),
    "fast_weight_memory": in_context(mx.fast_weight_memory(4, 3, hidden=2, size=2)),
    "external_memory": in_context(mx.external_memory(4, 3, hidden=2, slots=2, width=2)),
    "maml": few_shot(lambda problem: mx.maml(problem, 0.1)),
    "maml_with_model_state": few_shot(
        lambda problem: mx.maml(problem, 0.1), problem=normalised(with_dropout=True)
    ),
    "maml_ragged": few_shot(
        lambda problem: mx.maml(problem, 0.1), lambda tasks: mx.tasks.ragged(tasks, 2)
    ),
    "anil": few_shot(lambda problem: mx.anil(problem, 0.1, lambda name: name == "0/b")),
    "meta_sgd": few_shot(lambda problem: mx.meta_sgd(problem, 0.1)),
    "maml_plus_plus": few_shot(
        lambda problem: mx.maml_plus_plus(problem, mx.step_weights(4, 0.5), 0.1),
        mx.tasks.with_query,
    ),
    "learned_loss": few_shot(learned_penalty),
    "reptile": few_shot(lambda problem: mx.reptile(problem, optax.sgd(0.1))),
    "imaml": few_shot(imaml),
    "imaml_with_model_state": few_shot(imaml, problem=normalised(with_dropout=False)),
    "protonet": few_shot(lambda _: mx.protonet(embedding(), 3, 3)),
    "ridge": few_shot(lambda _: mx.ridge(embedding(), 3, 3)),
}

ESTIMATORS = {
    "bptt": lambda inner, _: mx.bptt(inner, 3),
    "bptt_no_remat": lambda inner, _: mx.bptt(inner, 3, remat=False),
    "bptt_truncated": lambda inner, _: mx.bptt(inner, 3, 2),
    "bptt_staggered": lambda inner, _: mx.bptt(inner, 3, 2, stagger=True),
    "forward": lambda inner, _: mx.forward(inner, 3),
    "es": lambda inner, _: mx.es(inner, 3, 1e-3),
    "pes": lambda inner, _: mx.pes(inner, 3, 1e-3, 2),
    "noise_reuse_es": lambda inner, _: mx.noise_reuse_es(inner, 4, 1e-3, 2),
    "guided_es": lambda inner, _: mx.guided_es(inner, 3, 1e-3, surrogate=mx.bptt(inner, 1)),
    "mix": lambda inner, _: mx.mix([mx.bptt(inner, 2), mx.es(inner, 2, 1e-3)]),
    "open_es": lambda inner, m: mx.ask_tell(inner, Open_ES(4, solution=m), 2),
    "cma_es": lambda inner, m: mx.ask_tell(inner, CMA_ES(4, solution=m), 2),
}
HELDOUT = {"bptt", "es", "open_es"}  # one of each kind, with the loss on the test batch
# Every pair is traced. What is more is compiled and run: all estimators on these learners, all
# learners with these estimators, one of each kind.
RUN = {"sgd_rate", "l2l_lstm", "vsml", "maml", "imaml"} | HELDOUT
