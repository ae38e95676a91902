"""Learning where to start: MAML and those of its family that adapt by gradient steps.

One learner, `adapt`, takes an optimizer's steps from a starting point that is meta-learned. The
members of the family say which optimizer, from where, for which parameters, and whether its
gradients are differentiated again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metajax import _checks
from metajax.learners._l2l import transformation
from metajax.tasks._with_query import pair
from metajax.types import Array, Learner, Problem, PyTree


class Adapted(NamedTuple):
    """The parameters that adapt, with None in the place of those that do not, and the optimizer's
    state.
    """

    params: PyTree
    opt_state: PyTree


def itself(meta_params: PyTree) -> PyTree:
    """The starting point is all that is meta-learned."""
    return meta_params


def everything(params: PyTree) -> PyTree:
    """All parameters adapt."""
    return jax.tree.map(lambda _: True, params)


def adapt(
    problem: Problem,
    make_tx: Callable[..., Any],
    *,
    start: Callable[..., PyTree] = itself,
    adapts: Callable[..., PyTree] = everything,
    second_order: bool = True,
) -> Learner:
    """Adapts the parameters of ``problem`` from a meta-learned start, one step of an optimizer at a
    time.

    What `maml` and its relatives are made of, and where others come from: ``adapt(problem, lambda
    m: optax.adam(0.1))`` is MAML over Adam. Parameters that do not adapt are taken from the
    meta-parameters, so that they are still learned.

    Args:
      problem: what is minimised; its ``init`` gives meta-parameters to begin with.
      make_tx: ``meta_params -> optax.GradientTransformation``.
      start: ``meta_params -> params``, where each task starts.
      adapts: from ``params`` to a tree of bools like it, which of them adapt.
      second_order: let the meta-gradient flow through the gradients of the inner loss too.

    Raises:
      TypeError: a problem or function that is none.
      ValueError: nothing adapts.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.adapt(mx.problems.mlp((64, 10)), lambda m: optax.adam(m["rate"]), start=lambda m: m["params"])
    >>> meta_params = {"params": mx.problems.mlp((64, 10)).init(jax.random.key(0), ()), "rate": 0.1}
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=3, meta_loss="heldout")
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, mx.data.load("digits"), num_tasks=2)
    >>> curves.test_metrics["accuracy"].shape  # on the test batch, after three steps
    (2,)
    """
    problem = _checks.problem("problem", problem)
    for name, f in {"make_tx": make_tx, "start": start, "adapts": adapts}.items():
        _checks.function(name, f)

    def join(meta_params, params):
        given = start(meta_params)
        return jax.tree.map(
            lambda new, old: old if new is None else new, params, given, is_leaf=lambda x: x is None
        )

    def init(key, meta_params, task):
        given = start(meta_params)
        params = jax.tree.map(
            lambda x, chosen: jnp.asarray(x) if chosen else None, given, adapts(given)
        )
        if not jax.tree.leaves(params):
            raise ValueError("adapts must choose at least one of the parameters, got none")
        return Adapted(params, transformation(make_tx, meta_params).init(params))

    def step(key, meta_params, state, batch):
        def objective(params):
            return problem.loss(key, join(meta_params, params), batch)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        if not second_order:
            grads = lax.stop_gradient(grads)
        tx = transformation(make_tx, meta_params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
        return Adapted(optax.apply_updates(state.params, updates), opt_state), loss, metrics

    def loss(key, meta_params, state, batch):
        return problem.loss(key, join(meta_params, state.params), batch)[0]

    def metrics(key, meta_params, state, batch):
        return problem.loss(key, join(meta_params, state.params), batch)[1]

    return Learner(init, step, loss, metrics)


def maml(problem: Problem, rate: float) -> Learner:
    """Model-agnostic meta-learning (Finn et al. 2017, algorithm 1): the start of gradient descent
    is meta-learned.

    The inner loop takes a gradient step on the support batch (``tasks.train``) at each of its
    steps, and the meta-loss ``"heldout"`` is that of the query batch (``tasks.test``). The
    meta-parameters are the parameters of ``problem``, ``problem.init(key, task)`` to begin with.
    With the rate 0 this is joint training on all tasks, to `finetune` from.

    Args:
      problem: what is minimised.
      rate: of the inner gradient steps, at least 0.

    Raises:
      TypeError, ValueError: a problem that is none, a rate below 0.

    >>> import jax, metajax as mx, optax
    >>> problem, data = mx.problems.mlp((64, 10)), mx.data.load("digits")
    >>> loop = mx.inner(mx.maml(problem, rate=0.4), mx.tasks.minibatches(5), horizon=5, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), problem.init(jax.random.key(1), ()), data)
    >>> state, metrics = jax.jit(trainer.step)(state, data)
    >>> sorted(metrics)  # the accuracies: on the support batch, a mean over the steps; on the query batch, after them
    ['accuracy', 'loss', 'skipped', 'test_accuracy', 'update_norm']
    """
    tx = optax.sgd(_checks.at_least_zero("rate", rate))
    return adapt(problem, lambda meta_params: tx)


def fomaml(problem: Problem, rate: float) -> Learner:
    """First-order MAML (Finn et al. 2017, section 5.2): `maml` with the gradients of the inner loss
    held constant.

    Its meta-gradient is the mean gradient of the query losses at the adapted parameters.

    Raises:
      TypeError, ValueError: a problem that is none, a rate below 0.

    >>> import metajax as mx
    >>> learner = mx.fomaml(mx.problems.mlp((64, 10)), rate=0.4)
    """
    tx = optax.sgd(_checks.at_least_zero("rate", rate))
    return adapt(problem, lambda meta_params: tx, second_order=False)


def anil(problem: Problem, rate: float, head: Callable[[str], bool]) -> Learner:
    """Almost no inner loop (Raghu et al. 2020, section 4): `maml` that adapts the head alone.

    Args: problem: what is minimised. rate: of the inner gradient steps, at least 0. head: which
      parameters are the head, by name, the path in the tree: ``"1/w"``, ``"params/Dense_0/bias"``.

    Raises: TypeError, ValueError: a problem that is none, a rate below 0, a head of no or of all
      parameters.

    >>> import metajax as mx
    >>> learner = mx.anil(mx.problems.mlp((64, 20, 10)), rate=0.4, head=lambda name: name.startswith("1/"))
    """
    tx = optax.sgd(_checks.at_least_zero("rate", rate))
    return adapt(problem, lambda meta_params: tx, adapts=_named(head, True))


def boil(problem: Problem, rate: float, head: Callable[[str], bool]) -> Learner:
    """Body only update in the inner loop (Oh et al. 2021, section 3): `maml` that adapts all but
    the head.

    Args:
      problem: what is minimised.
      rate: of the inner gradient steps, at least 0.
      head: which parameters are the head, by name, as for `anil`.

    Raises: TypeError, ValueError: a problem that is none, a rate below 0, a head of no or of all
      parameters.

    >>> import metajax as mx
    >>> learner = mx.boil(mx.problems.mlp((64, 20, 10)), rate=0.4, head=lambda name: name.startswith("1/"))
    """
    tx = optax.sgd(_checks.at_least_zero("rate", rate))
    return adapt(problem, lambda meta_params: tx, adapts=_named(head, False))


def meta_sgd(problem: Problem) -> Learner:
    """Meta-SGD (Li et al. 2017, algorithm 1): `maml` with a rate for each parameter, learned along
    with the start.

    The meta-parameters are those of `with_rates`, ``{"params": ..., "rates": ...}``; rates are free
    to change sign.

    Raises:
      TypeError: a problem that is none.

    >>> import jax, metajax as mx
    >>> problem = mx.problems.mlp((64, 10))
    >>> meta_params = mx.with_rates(problem.init(jax.random.key(0), ()), 0.4)
    >>> loop = mx.inner(mx.meta_sgd(problem), mx.tasks.minibatches(5), horizon=2, meta_loss="heldout")
    >>> mx.evaluate(loop, jax.random.key(1), meta_params, mx.data.load("digits"), num_tasks=2).test_loss.shape
    (2,)
    """

    def make_tx(meta_params):
        params, rates = meta_params["params"], meta_params["rates"]
        _checks.same_structure("meta_params['rates']", rates, params, "meta_params['params']")
        return optax.stateless(lambda grads, _: jax.tree.map(_scale, rates, grads))

    def start(meta_params):
        return _checks.entries("meta_params", meta_params, ("params", "rates"), "with_rates")[
            "params"
        ]

    return adapt(problem, make_tx, start=start)


def with_rates(params: PyTree, rate: float) -> dict[str, PyTree]:
    """Meta-parameters for `meta_sgd`: ``params``, and a rate for each of their values.

    Raises:
      TypeError, ValueError: a rate that is not above 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.with_rates({"w": jnp.ones(2)}, 0.5)["rates"]["w"].tolist()
    [0.5, 0.5]
    """
    _checks.positive_float(rate=rate)
    return {"params": params, "rates": jax.tree.map(lambda x: jnp.full_like(x, rate), params)}


def finetune(problem: Problem, tx: optax.GradientTransformation) -> Learner:
    """Plain fine-tuning by any optax transformation, the baseline of the family: gradients are held
    constant.

    Train the start beforehand, e.g. by `maml` with the rate 0, and `evaluate` this.

    Raises:
      TypeError: a problem or a transformation that is none.

    >>> import metajax as mx, optax
    >>> learner = mx.finetune(mx.problems.mlp((64, 10)), optax.adam(1e-2))
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"tx must be an optax.GradientTransformation, e.g. optax.sgd(0.1), got {type(tx).__name__}"
        )
    return adapt(problem, lambda meta_params: tx, second_order=False)


def reptile(problem: Problem, tx: optax.GradientTransformation) -> Learner:
    """Reptile (Nichol et al. 2018, algorithm 2): move the start towards where training on each task
    ends.

    With the meta-loss ``"heldout"``, the meta-gradient of `metajax.bptt` and `metajax.forward` is
    the mean over tasks of ``theta - phi``, the start minus what was adapted; with
    ``optax.sgd(epsilon)`` as the outer transformation, training is Reptile. The query batch is
    evaluated and not learned from. With the meta-loss ``"online"`` the meta-gradient is the mean of
    ``theta - phi`` over the steps too. An evolution strategy sees losses alone and descends on
    those instead.

    Args:
      problem: what is minimised.
      tx: the inner optimizer; ``optax.adam(1e-3, b1=0)`` in the paper.

    Raises:
      TypeError: a problem or a transformation that is none.

    >>> import jax, metajax as mx, optax
    >>> problem, data = mx.problems.mlp((64, 10)), mx.data.load("digits")
    >>> loop = mx.inner(mx.reptile(problem, optax.sgd(0.4)), mx.tasks.minibatches(5), horizon=5, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.sgd(0.1))
    >>> state = trainer.init(jax.random.key(0), problem.init(jax.random.key(1), ()), data)
    >>> state, metrics = jax.jit(trainer.step)(state, data)
    """
    base = finetune(problem, tx)

    def pull(meta_params, state, loss):
        """The value of ``loss`` with the gradient ``theta - phi``."""
        away = jax.tree.map(
            lambda theta, phi: jnp.sum((theta - phi) ** 2),
            meta_params,
            lax.stop_gradient(state.params),
        )
        half = 0.5 * sum(jax.tree.leaves(away))
        return lax.stop_gradient(loss) + (
            half - lax.stop_gradient(half)
        )  # the bracket is 0 to the last bit

    def step(key, meta_params, state, batch):
        new, loss, metrics = base.step(key, meta_params, state, batch)
        return new, pull(meta_params, new, loss), metrics

    def loss(key, meta_params, state, batch):
        return pull(meta_params, state, base.loss(key, meta_params, state, batch))

    return base._replace(step=step, loss=loss)


# MAML++


class Counted(NamedTuple):
    """The number of steps taken, int32, and the state of the learner that takes them."""

    t: Array
    learner: PyTree


def multi_step(learner: Learner, weights: Any) -> Learner:
    """A learner judged after each of its steps, by a weighted sum of query losses (Antoniou et al.
    2019, section 4).

    For batches of `metajax.tasks.with_query` and the meta-loss ``"online"`` over as many steps as
    there are weights: it learns from the support batch and its loss is then that of the query
    batch, times the weight and the number of steps, so that the mean over the steps is the weighted
    sum. Metrics of the query batch are named ``test_<name>``.

    Args:
      learner: what is judged.
      weights: ``[steps]``, at least 0, e.g. from `step_weights`. Steps beyond get the last.

    Raises: TypeError, ValueError: a learner that is none, or weights that are no vector of finite
      numbers at least 0.

    >>> import jax, metajax as mx
    >>> learner = mx.multi_step(mx.maml(mx.problems.mlp((64, 10)), rate=0.4), mx.step_weights(3, progress=0.0))
    >>> loop = mx.inner(learner, mx.tasks.with_query(mx.tasks.minibatches(5)), horizon=3)
    >>> meta_params = mx.problems.mlp((64, 10)).init(jax.random.key(0), ())
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, mx.data.load("digits"), num_tasks=2)
    >>> curves.metrics["test_accuracy"].shape  # on the query batch, after each step
    (2, 3)
    """
    _checks.instance(Learner, learner=learner)
    weights = np.asarray(weights, float)
    if weights.ndim != 1 or not weights.size or not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError(
            f"weights must be a vector of finite numbers, at least 0 and one a step, got {weights}"
        )

    def init(key, meta_params, task):
        return Counted(jnp.int32(0), learner.init(key, meta_params, task))

    def step(key, meta_params, state, batch):
        support, query = pair(batch)
        k_step, k_query = jax.random.split(key)
        new, _, metrics = learner.step(k_step, meta_params, state.learner, support)
        loss = learner.loss(k_query, meta_params, new, query)
        tested = {
            f"test_{name}": x
            for name, x in learner.metrics(k_query, meta_params, new, query).items()
        }
        weight = jnp.asarray(weights * weights.size, loss.dtype)[
            jnp.minimum(state.t, weights.size - 1)
        ]
        return Counted(state.t + 1, new), weight * loss, metrics | tested

    def loss(key, meta_params, state, batch):
        return learner.loss(key, meta_params, state.learner, batch)

    def metrics(key, meta_params, state, batch):
        return learner.metrics(key, meta_params, state.learner, batch)

    return Learner(init, step, loss, metrics)


def step_weights(steps: int, progress: float) -> list[float]:
    """Weights for `multi_step` that go from all steps alike to the last alone, and add up to 1.

    Args:
      steps: inner steps.
      progress: from 0, all alike, to 1, the last alone; linear in between.

    Raises:
      TypeError, ValueError: no step, or progress outside [0, 1].

    >>> import metajax as mx
    >>> mx.step_weights(4, 0.0), mx.step_weights(4, 0.5), mx.step_weights(4, 1.0)
    ([0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625], [0.0, 0.0, 0.0, 1.0])
    """
    _checks.positive_int(steps=steps)
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress must lie in [0, 1], got {progress}: the share of the annealing that is done"
        )
    early = (1 - progress) / steps
    return [early] * (steps - 1) + [1 - (steps - 1) * early]


def maml_plus_plus(problem: Problem, weights: Any, second_order: bool = True) -> Learner:
    """MAML++ (Antoniou et al. 2019): `maml` with learned rates a layer and step, judged after each
    of them.

    What the paper anneals over meta-training is an argument here, and training goes in phases: the
    state of one trainer is that of the next. The meta-parameters are those of `with_step_rates`,
    the batches those of `metajax.tasks.with_query`, the meta-loss ``"online"``, the horizon the
    number of weights. The paper's cosine schedule is optax's; what it says about batch
    normalisation concerns the network.

    Args:
      problem: what is minimised.
      weights: one a step, e.g. from `step_weights`; section 4, multi-step loss.
      second_order: False in the first phase of the paper's derivative-order annealing, True later.

    Raises:
      TypeError, ValueError: a problem that is none, or weights as for `multi_step`.

    >>> import jax, metajax as mx, optax
    >>> problem, data, tasks = mx.problems.mlp((64, 10)), mx.data.load("digits"), mx.tasks.minibatches(5)
    >>> meta_params = mx.with_step_rates(problem.init(jax.random.key(0), ()), 0.1, steps=3)
    >>> state = None
    >>> for phase, progress in enumerate([0.0, 1.0]):
    ...     learner = mx.maml_plus_plus(problem, mx.step_weights(3, progress), second_order=phase > 0)
    ...     loop = mx.inner(learner, mx.tasks.with_query(tasks), horizon=3)
    ...     trainer = mx.trainer(mx.bptt(loop, num_tasks=2), optax.adam(1e-3))
    ...     state = trainer.init(jax.random.key(1), meta_params, data) if state is None else state
    ...     state = mx.fit(trainer, state, data, num_steps=2 * (phase + 1), progress=False).state
    >>> int(state.step)
    4
    """

    def make_tx(meta_params):
        def update(updates, state, params=None):
            del params

            def scale(rates, grads):
                if rates.ndim != 1:
                    raise ValueError(
                        f"meta_params['rates'] must hold rates [steps], as metajax.with_step_rates makes them, got "
                        f"{list(rates.shape)}"
                    )
                return _scale(rates[jnp.minimum(state, len(rates) - 1)], grads)

            return jax.tree.map(scale, meta_params["rates"], updates), state + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)

    def start(meta_params):
        return _checks.entries("meta_params", meta_params, ("params", "rates"), "with_step_rates")[
            "params"
        ]

    learner = adapt(problem, make_tx, start=start, second_order=second_order)
    return multi_step(learner, weights)


def with_step_rates(params: PyTree, rate: float, steps: int) -> dict[str, PyTree]:
    """Meta-parameters for `maml_plus_plus`: ``params``, and for each of their leaves rates
    ``[steps]``.

    Raises:
      TypeError, ValueError: a rate that is not above 0, no step.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.with_step_rates({"w": jnp.ones(2)}, 0.5, steps=3)["rates"]["w"].tolist()
    [0.5, 0.5, 0.5]
    """
    _checks.positive_float(rate=rate)
    _checks.positive_int(steps=steps)
    return {
        "params": params,
        "rates": jax.tree.map(lambda x: jnp.full(steps, rate, jnp.result_type(x)), params),
    }


def _scale(rates: Array, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda g: -rates * g, grads)


def _named(head: Callable[[str], bool], which: bool) -> Callable:
    """Chooses the parameters of the head (``which`` True) or those of the body, and minds that
    there are both.
    """
    _checks.function(head=head)

    def adapts(params):
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        chosen = [bool(head(name)) for name in names]
        if len(set(chosen)) < 2:
            raise ValueError(
                f"head must be true for some of the parameters and false for others, it is {set(chosen)} for {names}"
            )
        return jax.tree.unflatten(structure, [x == which for x in chosen])

    return adapts
