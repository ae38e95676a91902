"""Learning where to start: MAML and those of its family that adapt by gradient steps.

One learner, `adapt`, takes an optimizer's steps from a starting point that is meta-learned. The
members of the family say which optimizer, from where, for which parameters, and whether its
gradients are differentiated again.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks, _trees
from metajax._arguments import NonNegative, PositiveFloat, checked
from metajax.learners._descent import MakeTx, descent
from metajax.types import Key, Learner, MetaParams, Params, Problem, PyTree, no_meta

Names = Callable[[str], bool]


def itself(meta_params: MetaParams) -> Params:
    """The starting point is all that is meta-learned."""
    return meta_params


def everything(params: Params) -> PyTree:
    """All parameters adapt."""
    return jax.tree.map(lambda _: True, params)


@checked
def adapt(
    problem: Problem,
    make_tx: MakeTx,
    *,
    start: Callable[[MetaParams], Params] = itself,
    adapts: Callable[[Params], PyTree] = everything,
    second_order: bool = True,
    meta: Callable[[Key], MetaParams] | None = None,
) -> Learner:
    """Adapts the parameters of ``problem`` from a meta-learned start, by steps of an optimizer.

    What `maml` and its relatives are made of, and where others come from: ``adapt(problem, lambda
    m: optax.adam(0.1))`` is MAML over Adam. Parameters that do not adapt are taken from the
    meta-parameters, so that they are still learned. The state of a model, such as its running
    statistics, begins in each episode as ``problem.init`` makes it.

    Args:
      problem: what is minimised.
      make_tx: ``meta_params -> optax.GradientTransformation``.
      start: ``meta_params -> params``, where each task starts.
      adapts: from ``params`` to a tree of bools like it, which of them adapt.
      second_order: let the meta-gradient flow through the gradients of the inner loss too.
      meta: ``key -> meta_params``; by default the parameters of ``problem``, where they are the
        start.

    >>> import jax, metajax as mx, optax
    >>> problem = mx.problems.mlp((64, 10))
    >>> learner = mx.adapt(problem, lambda m: optax.adam(m["rate"]), start=lambda m: m["params"])
    >>> params, _ = problem.init(jax.random.key(0), ())
    >>> meta_params = {"params": params, "rate": 0.1}
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=3, meta_loss="heldout")
    >>> digits = mx.data.load("digits")
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, digits, num_tasks=2)
    >>> curves.test_metrics["accuracy"].shape  # on the test batch, after three steps
    (2,)
    """
    if meta is None and start is itself:
        meta = _initial(problem)

    def begin(key, meta_params, task):
        _, model_state = problem.init(key, task)
        return chosen(adapts, start(meta_params)), model_state

    def complete(meta_params, params):
        return completed(params, start(meta_params))

    return descent(
        problem,
        make_tx,
        begin,
        second_order=second_order,
        meta=meta or no_meta,
        complete=complete,
    )


def chosen(adapts: Callable[[Params], PyTree], params: Params) -> Params:
    """The floating parameters that adapt, None in the place of the others."""
    adapting = jax.tree.map(
        lambda x, is_chosen: (
            jnp.asarray(x) if is_chosen and _trees.is_floating(x) else None
        ),
        params,
        adapts(params),
    )
    if not jax.tree.leaves(adapting):
        raise ValueError(
            "adapts must choose at least one of the floating-point parameters, got none"
        )
    return adapting


def completed(adapting: Params, params: Params) -> Params:
    """Those that are `chosen`, and in the place of the others those of ``params``."""
    return jax.tree.map(
        lambda new, fixed: fixed if new is None else new,
        adapting,
        params,
        is_leaf=lambda x: x is None,
    )


def initial_params(problem: Problem, key: Key) -> Params:
    """The parameters of a problem whose start is the same for all tasks."""
    params, _ = problem.init(key, ())
    return params


def _initial(problem: Problem) -> Callable[[Key], Params]:
    return lambda key: initial_params(problem, key)


@checked
def maml(problem: Problem, rate: NonNegative) -> Learner:
    """Model-agnostic meta-learning (Finn et al. 2017, algorithm 1): the start is meta-learned.

    The inner loop takes a gradient step on the support batch (``tasks.train``) at each of its
    steps, and the meta-loss ``"heldout"`` is that of the query batch (``tasks.test``). The
    meta-parameters are the parameters of ``problem``. With the rate 0 this is joint training on all
    tasks, to `finetune` from.

    Args:
      problem: what is minimised.
      rate: of the inner gradient steps, at least 0.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.maml(mx.problems.mlp((64, 10)), rate=0.4)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=5, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> digits = mx.data.load("digits")
    >>> state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), digits)
    >>> state, metrics = jax.jit(trainer.step)(state, digits)
    >>> metrics["accuracy"].shape, metrics["test_accuracy"].shape  # support, and query afterwards
    ((), ())
    """
    return adapt(problem, _gradient_steps(rate))


@checked
def fomaml(problem: Problem, rate: NonNegative) -> Learner:
    """First-order MAML (Finn et al. 2017, section 5.2): gradients of the inner loss are constants.

    Its meta-gradient is the mean gradient of the query losses at the adapted parameters.

    >>> import metajax as mx
    >>> learner = mx.fomaml(mx.problems.mlp((64, 10)), rate=0.4)
    """
    return adapt(problem, _gradient_steps(rate), second_order=False)


@checked
def anil(problem: Problem, rate: NonNegative, head: Names) -> Learner:
    """Almost no inner loop (Raghu et al. 2020, section 4): `maml` that adapts the head alone.

    Args:
      problem: what is minimised.
      rate: of the inner gradient steps, at least 0.
      head: which parameters are the head, by name, the path in the tree: ``"1/w"``,
        ``"params/Dense_0/bias"``.

    Raises:
      ValueError: when it runs, a head of no or of all parameters.

    >>> import metajax as mx
    >>> problem = mx.problems.mlp((64, 20, 10))
    >>> learner = mx.anil(problem, rate=0.4, head=lambda name: name.startswith("1/"))
    """
    return adapt(problem, _gradient_steps(rate), adapts=_choose(head, True))


@checked
def boil(problem: Problem, rate: NonNegative, head: Names) -> Learner:
    """Body only update in the inner loop (Oh et al. 2021, section 3): all but the head adapts.

    Arguments and errors are those of `anil`.

    >>> import metajax as mx
    >>> problem = mx.problems.mlp((64, 20, 10))
    >>> learner = mx.boil(problem, rate=0.4, head=lambda name: name.startswith("1/"))
    """
    return adapt(problem, _gradient_steps(rate), adapts=_choose(head, False))


@checked
def meta_sgd(problem: Problem, rate: PositiveFloat) -> Learner:
    """Meta-SGD (Li et al. 2017, algorithm 1): `maml` with a learned rate for each parameter.

    The meta-parameters are ``{"params": ..., "rates": ...}``, two trees alike; rates are free to
    change sign.

    Args:
      problem: what is minimised.
      rate: what all rates begin with.

    >>> import jax, metajax as mx
    >>> learner = mx.meta_sgd(mx.problems.mlp((64, 10)), rate=0.4)
    >>> meta_params = learner.meta(jax.random.key(0))
    >>> meta_params["rates"][0]["w"].shape
    (64, 10)
    """

    def meta(key):
        params = initial_params(problem, key)
        floating, _ = _trees.partition(params)
        rates = jax.tree.map(lambda x: jnp.full_like(x, rate), floating)
        return {"params": params, "rates": rates}

    def start(meta_params):
        return entries(meta_params, "meta_sgd")["params"]

    def make_tx(meta_params):
        rates = meta_params["rates"]
        floating, _ = _trees.partition(meta_params["params"])
        _checks.same_structure(
            "meta_params['rates']", rates, floating, "meta_params['params']"
        )
        return optax.stateless(lambda grads, _: jax.tree.map(scale, rates, grads))

    return adapt(problem, make_tx, start=start, meta=meta)


@checked
def finetune(problem: Problem, tx: optax.GradientTransformation) -> Learner:
    """Plain fine-tuning by any optax transformation, the baseline of the family.

    Train the start beforehand, e.g. by `maml` with the rate 0, and `evaluate` this. All that the
    optimizer sees is held constant, so that line searches are no obstacle to a meta-gradient.

    >>> import metajax as mx, optax
    >>> learner = mx.finetune(mx.problems.mlp((64, 10)), optax.adam(1e-2))
    """
    extended = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        updates, state, params = lax.stop_gradient((updates, state, params))
        return extended.update(updates, state, params, **_stopped(extra))

    constant = optax.GradientTransformationExtraArgs(tx.init, update)
    return adapt(problem, lambda meta_params: constant, second_order=False)


def _stopped(extra: dict) -> dict:
    """Extra arguments held constant; the function that a line search calls depends on none."""
    functions = {name: x for name, x in extra.items() if callable(x)}
    arrays = {name: x for name, x in extra.items() if not callable(x)}
    return functions | lax.stop_gradient(arrays)


@checked
def reptile(problem: Problem, tx: optax.GradientTransformation) -> Learner:
    """Reptile (Nichol et al. 2018, algorithm 2): move the start towards where training ends.

    With the meta-loss ``"heldout"``, the meta-gradient of `metajax.bptt` and `metajax.forward` is
    the mean over tasks of ``theta - phi``, the start minus what was adapted; with
    ``optax.sgd(epsilon)`` as the outer transformation, training is Reptile. The query batch is
    evaluated and not learned from. With the meta-loss ``"online"`` the meta-gradient is the mean of
    ``theta - phi`` over the steps too. An evolution strategy sees losses alone and descends on
    those instead.

    Args:
      problem: what is minimised.
      tx: the inner optimizer; ``optax.adam(1e-3, b1=0)`` in the paper.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.reptile(mx.problems.mlp((64, 10)), optax.sgd(0.4))
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=5, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.sgd(0.1))
    >>> digits = mx.data.load("digits")
    >>> state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), digits)
    >>> state, metrics = jax.jit(trainer.step)(state, digits)
    """
    base = finetune(problem, tx)

    def pulled(meta_params, state, loss):
        """The value of ``loss`` with the gradient ``theta - phi``."""
        theta, _ = _trees.partition(meta_params)
        phi, _ = _trees.partition(state.params)
        difference = optax.tree.sub(theta, lax.stop_gradient(phi))
        half_square = 0.5 * optax.tree.norm(difference, squared=True)
        # What is added is 0 to the last bit.
        return lax.stop_gradient(loss) + (half_square - lax.stop_gradient(half_square))

    def step(key, meta_params, state, batch):
        state, loss, metrics = base.step(key, meta_params, state, batch)
        return state, pulled(meta_params, state, loss), metrics

    def test(key, meta_params, state, batch):
        loss, metrics = base.test(key, meta_params, state, batch)
        return pulled(meta_params, state, loss), metrics

    return replace(base, step=step, test=test)


@checked
def _gradient_steps(rate: NonNegative) -> MakeTx:
    tx = optax.sgd(rate)
    return lambda meta_params: tx


def scale(rates: jax.Array, grads: PyTree) -> PyTree:
    """The updates ``-rates * g``."""
    return jax.tree.map(lambda g: -rates * g, grads)


def entries(meta_params: MetaParams, learner: str) -> MetaParams:
    """Says that ``meta_params`` are not parameters and their rates."""
    maker = f"metajax.{learner}(...).meta(key)"
    return _checks.entries("meta_params", meta_params, ("params", "rates"), maker)


def _choose(head: Names, adapt_head: bool) -> Callable[[Params], PyTree]:
    """Chooses the parameters of the head or those of the body, and minds that there are both."""

    def adapts(params):
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths
        ]
        in_head = [bool(head(name)) for name in names]
        if len(set(in_head)) < 2:
            raise ValueError(
                f"head must be true for some of the parameters and false for others, it is "
                f"{set(in_head)} for {names}"
            )
        return jax.tree.unflatten(structure, [x == adapt_head for x in in_head])

    return adapts
