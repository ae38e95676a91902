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
    opt = mx.optim.lstm(hidden=(3,))
    learner = mx.l2l(opt.tx, mx.problems.mlp((4, 3)))
    return (
        mx.inner(learner, mx.tasks.minibatches(5), 4, meta_loss),
        opt.init(jax.random.key(7)),
        IMAGES,
    )


def l2l_lstm_second_order(meta_loss):
    opt = mx.optim.lstm(hidden=(2,), p=None)
    learner = mx.l2l(opt.tx, mx.problems.quadratic(), second_order=True)
    return mx.inner(learner, mx.tasks.quadratics(2), 4, meta_loss), opt.init(jax.random.key(7)), ()


def sgd_rate(meta_loss):
    learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    return mx.inner(learner, mx.tasks.quadratics(2), 4, meta_loss), jnp.float32(0.01), ()


def in_context(net):
    def example(meta_loss):
        tasks = mx.tasks.permute_labels(mx.tasks.classification(2, test_size=4), 3)
        return (
            mx.inner(net.learner, tasks, 4, meta_loss),
            net.init(jax.random.key(7)),
            mx.data.by_class(IMAGES),
        )

    return example


def few_shot(make, with_meta_params=lambda params: params, arrange=lambda tasks: tasks):
    """A learner on minibatches, made from a problem with the parameters ``with_meta_params`` is
    given.
    """
    problem = mx.problems.mlp((4, 3))

    def system(meta_loss):
        inner = mx.inner(make(problem), arrange(mx.tasks.minibatches(5, test_size=5)), 4, meta_loss)
        return inner, with_meta_params(problem.init(jax.random.key(7), ())), IMAGES

    return system


def embed(params, images):
    return images.reshape(len(images), -1) @ params[0]["w"]


LEARNERS = {
    "l2l_lstm": l2l_lstm,
    "l2l_lstm_second_order": l2l_lstm_second_order,
    "sgd_rate": sgd_rate,
    "vsml": in_context(mx.vsml((4, 3), mx.cells.lstm(2, 2, ticks=1))),
    "meta_rnn": in_context(mx.meta_rnn(4, 3, hidden=2, ticks=1)),
    "hebbian": in_context(mx.hebbian(4, 3)),
    "fast_weight_memory": in_context(mx.fast_weight_memory(4, 3, hidden=2, size=2)),
    "external_memory": in_context(mx.external_memory(4, 3, hidden=2, slots=2, width=2)),
    "maml": few_shot(lambda problem: mx.maml(problem, 0.1)),
    "anil": few_shot(lambda problem: mx.anil(problem, 0.1, lambda name: name == "0/b")),
    "meta_sgd": few_shot(mx.meta_sgd, lambda params: mx.with_rates(params, 0.1)),
    "maml_plus_plus": few_shot(
        lambda problem: mx.maml_plus_plus(problem, mx.step_weights(4, 0.5)),
        lambda params: mx.with_step_rates(params, 0.1, 4),
        mx.tasks.with_query,
    ),
    "reptile": few_shot(lambda problem: mx.reptile(problem, optax.sgd(0.1))),
    "imaml": few_shot(
        lambda p: mx.imaml(p, mx.implicit.descend(optax.sgd(0.1), 2), mx.implicit.cg(2), 1.0)
    ),
    "protonet": few_shot(lambda _: mx.protonet(embed, 3, 3)),
    "ridge": few_shot(lambda _: mx.ridge(embed, 3, 3), mx.with_ridge),
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
