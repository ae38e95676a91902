"""The coordinatewise LSTM optimizer, and what one would write without thinking of speed."""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks.measure import Measured, Program, contest
from benchmarks.table import Row, Setting, Target, compared, memory

HIDDEN = 20
LAYERS = 2


def plain_update(
    meta_params: Any,
    grad: Any,
    h: Any,
    c: Any,
    p: float = 10.0,
    scale: float = 0.1,
) -> tuple[Any, list, list]:
    """One coordinate: ``grad`` a scalar, ``h`` and ``c`` a vector ``[20]`` for each layer."""
    is_large = jnp.abs(grad) >= jnp.exp(-p)
    size = jnp.log(jnp.where(is_large, jnp.abs(grad), 1.0)) / p
    x = jnp.stack(
        [
            jnp.where(is_large, size, -1.0),
            jnp.where(is_large, jnp.sign(grad), jnp.exp(p) * grad),
        ]
    )
    new_h = []
    new_c = []
    for layer, h_layer, c_layer in zip(
        meta_params["lstm"],
        h,
        c,
        strict=True,
    ):
        gates = layer["w"] @ jnp.concatenate([x, h_layer]) + layer["b"]
        i, j, f, o = jnp.split(gates, 4)
        kept = jax.nn.sigmoid(f + 1) * c_layer
        c_layer = kept + jax.nn.sigmoid(i) * jnp.tanh(j)
        x = jax.nn.sigmoid(o) * jnp.tanh(c_layer)
        new_h.append(x)
        new_c.append(c_layer)
    out = meta_params["out"]
    update = scale * (out["w"] @ x + out["b"])
    return update, new_h, new_c


plain_updates = jax.vmap(plain_update, (None, 0, 0, 0))


class Coordinates(NamedTuple):
    """An LSTM optimizer at work: ``grad [P]``, ``h`` and ``c`` one ``[H, P]`` a layer."""

    meta_params: Any
    grad: np.ndarray
    h: tuple[np.ndarray, ...]
    c: tuple[np.ndarray, ...]


def l2l_step(setting: Setting) -> list[Row]:
    """An update of all coordinates: in one leaf, in 200 leaves, with states in bfloat16.

    In one leaf it is held against a vmapped LSTM, in 200 leaves against leaf by leaf.
    """
    optimizer = mx.optim.lstm()
    meta_params = optimizer.init(jax.random.key(0))
    rows = []
    for size in (200,) if setting.smoke else (15_910, 1_000_000):
        rng = np.random.default_rng(0)

        def numbers(*shape, rng=rng):
            return rng.normal(size=shape).astype(np.float32)

        grad = numbers(size)
        h = tuple(numbers(LAYERS, HIDDEN, size))
        c = tuple(numbers(LAYERS, HIDDEN, size))
        at_work = Coordinates(meta_params, grad, h, c)
        rows += [
            _in_one_leaf(setting, optimizer, at_work),
            _in_many_leaves(setting, optimizer, at_work, 4 if setting.smoke else 200),
            _in_bfloat16(setting, at_work),
        ]
    return rows


def _in_one_leaf(
    setting: Setting, optimizer: mx.LearnedOptimizer, at_work: Coordinates
) -> Row:
    meta_params, grad, h, c = at_work
    state = optimizer.tx(meta_params).init(grad)._replace(h=h, c=c)
    rows_h = [np.ascontiguousarray(x.T) for x in h]
    rows_c = [np.ascontiguousarray(x.T) for x in c]

    def ours_flat(result):
        updates, state = result
        return updates, *state.h, *state.c

    def plain_flat(result):
        updates, h, c = result
        return updates, *(x.T for x in (*h, *c))

    programs = {
        "ours": Program(_update(optimizer), (meta_params, grad, state), ours_flat),
        "vmap over coordinates": Program(
            plain_updates, (meta_params, grad, rows_h, rows_c), plain_flat
        ),
    }
    fast = [Target("ours", "<=", 100), Target("share", ">=", 0.5)]
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return _row(at_work, found, "", fast if _is_small(at_work) else [])


def _in_many_leaves(
    setting: Setting,
    optimizer: mx.LearnedOptimizer,
    at_work: Coordinates,
    leaves: int,
) -> Row:
    meta_params, grad, h, c = at_work
    split = partial(np.array_split, indices_or_sections=leaves, axis=-1)
    grads = split(grad)
    state = optimizer.tx(meta_params).init(grads)._replace(h=h, c=c)

    leafwise = mx.optim.leafwise(optimizer)
    blank = leafwise.tx(meta_params).init(grads)
    parts_h = zip(*map(split, h), strict=True)
    parts_c = zip(*map(split, c), strict=True)
    states = []
    for leaf, leaf_h, leaf_c in zip(
        blank.leaves,
        parts_h,
        parts_c,
        strict=True,
    ):
        states.append(leaf._replace(h=leaf_h, c=leaf_c))
    by_leaf = blank._replace(leaves=tuple(states))

    def ours_flat(result):
        updates, state = result
        return np.concatenate(updates), *state.h, *state.c

    def by_leaf_flat(result):
        updates, state = result
        layers_h = zip(*(leaf.h for leaf in state.leaves), strict=True)
        layers_c = zip(*(leaf.c for leaf in state.leaves), strict=True)
        layers = [np.concatenate(parts, -1) for parts in (*layers_h, *layers_c)]
        return np.concatenate(updates), *layers

    programs = {
        "ours": Program(_update(optimizer), (meta_params, grads, state), ours_flat),
        "leaf by leaf": Program(
            _update(leafwise), (meta_params, grads, by_leaf), by_leaf_flat
        ),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    bound = [Target("ratio", ">=", 8)]
    return _row(
        at_work, found, f", {leaves} leaves", bound if _is_small(at_work) else []
    )


def _in_bfloat16(setting: Setting, at_work: Coordinates) -> Row:
    meta_params, grad, h, c = at_work
    optimizer = mx.optim.lstm(state_dtype=jnp.bfloat16)
    half_h, half_c = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (h, c))
    state = optimizer.tx(meta_params).init(grad)._replace(h=half_h, c=half_c)
    programs = {"ours": Program(_update(optimizer), (meta_params, grad, state))}
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return _row(at_work, found, ", states in bfloat16", [])


def _update(optimizer: mx.LearnedOptimizer) -> Any:
    def update(meta_params, grad, state):
        return optimizer.tx(meta_params).update(grad, state)

    return update


def _is_small(at_work: Coordinates) -> bool:
    return at_work.grad.size < 100_000


def _row(
    at_work: Coordinates,
    found: dict[str, Measured],
    what: str,
    targets: list[Target],
) -> Row:
    size = at_work.grad.size
    return compared(
        "l2l_step",
        f"{size:,} coordinates{what}",
        found,
        unit="ns a coordinate",
        factor=1e9 / size,
        targets=targets,
    )


def l2l_bptt(setting: Setting) -> list[Row]:
    """A meta-gradient through an episode, against a vmapped scan that keeps all it makes."""
    num_tasks = 2 if setting.smoke else 16
    sizes = (64, 3, 10) if setting.smoke else (64, 20, 10)
    steps = 3 if setting.smoke else 20
    problem = mx.problems.mlp(sizes)
    tasks = mx.tasks.minibatches(8 if setting.smoke else 128)
    learner = mx.l2l(mx.optim.lstm(), problem)
    loop = mx.inner(learner, tasks, steps)
    estimator = mx.bptt(loop, num_tasks)
    data = mx.data.load("digits")
    key = jax.random.key(1)
    meta_params = learner.meta(jax.random.key(2))
    state = estimator.init(jax.random.key(3), meta_params, data)

    def ours(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    def plain(key, meta_params, data):
        keys = jax.random.split(key, num_tasks)
        starts = jax.vmap(loop.init, (0, None, None))(keys, meta_params, data)

        def meta_loss(meta_params):
            def episode(key, params):
                return plain_episode(
                    meta_params, key, params, data, problem, tasks, steps
                )

            return jax.vmap(episode)(starts.key, starts.learner.params).mean()

        return jax.value_and_grad(meta_loss)(meta_params)

    programs = {
        "ours": Program(ours, (key, meta_params, state, data)),
        "vmap and scan": Program(plain, (key, meta_params, data)),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    num_params = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    what = f"{num_tasks} tasks x {num_params:,} parameters x {steps} steps"
    return [
        compared(
            "l2l_bptt",
            what,
            found,
            targets=[Target("ratio", ">=", 2.2)],
        ),
        memory(
            "l2l_bptt", f"temporary memory, {what}", found, [Target("ratio", ">=", 5)]
        ),
    ]


def plain_episode(
    meta_params: Any,
    key: Any,
    params: Any,
    data: Any,
    problem: mx.Problem,
    tasks: mx.Tasks,
    steps: int,
) -> Any:
    """The mean loss of an episode that meets the batches of ours."""
    flat, unravel = ravel_pytree(params)

    def step(carry, t):
        x, h, c = carry
        k_data, _ = jax.random.split(jax.random.fold_in(key, t))
        batch = tasks.train(k_data, data, ())

        def loss(x):
            value, _ = problem.loss(key, unravel(x), (), batch)
            return value

        value, grad = jax.value_and_grad(loss)(x)
        update, h, c = plain_updates(
            meta_params,
            jax.lax.stop_gradient(grad),
            h,
            c,
        )
        return (x + update, h, c), value

    zeros = [jnp.zeros((flat.size, HIDDEN))] * LAYERS
    start = (flat, zeros, zeros)
    _, losses = jax.lax.scan(step, start, jnp.arange(steps))
    return losses.mean()


CASES = (l2l_step, l2l_bptt)
