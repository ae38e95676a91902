"""The coordinatewise LSTM optimizer, and what one would write without thinking of speed."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, Target, compared, memory
from metajax.optim._leafwise import LeafwiseState
from metajax.optim._lstm import LSTMState

HIDDEN = 20


def plain_update(meta_params, grad, h, c, p=10.0, scale=0.1):
    """One coordinate: ``grad`` a scalar, ``h`` and ``c`` a vector ``[20]`` for each of the two
    layers.
    """
    large = jnp.abs(grad) >= jnp.exp(-p)
    x = jnp.where(large, jnp.log(jnp.where(large, jnp.abs(grad), 1.0)) / p, -1.0)
    x = jnp.stack([x, jnp.where(large, jnp.sign(grad), jnp.exp(p) * grad)])
    new_h, new_c = [], []
    for layer, h_k, c_k in zip(meta_params["lstm"], h, c, strict=True):
        i, j, f, o = jnp.split(layer["w"] @ jnp.concatenate([x, h_k]) + layer["b"], 4)
        c_k = jax.nn.sigmoid(f + 1) * c_k + jax.nn.sigmoid(i) * jnp.tanh(j)
        x = jax.nn.sigmoid(o) * jnp.tanh(c_k)
        new_h.append(x)
        new_c.append(c_k)
    return (
        scale * (meta_params["out"]["w"] @ x + meta_params["out"]["b"]),
        tuple(new_h),
        tuple(new_c),
    )


plain_updates = jax.vmap(plain_update, (None, 0, 0, 0))


def l2l_step(setting: Setting) -> list[Row]:
    """An update of all coordinates: in one leaf against a vmapped LSTM, in 200 leaves against leaf
    by leaf.
    """
    opt, rows = mx.optim.lstm(), []
    for size in (200,) if setting.smoke else (15_910, 1_000_000):
        rows += _step(setting, opt, size, leaves=4 if setting.smoke else 200)
    return rows


def _step(setting, opt, size, leaves):
    meta_params = opt.init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.normal(size=shape).astype(np.float32)

    grad, h, c = numbers(size), tuple(numbers(2, HIDDEN, size)), tuple(numbers(2, HIDDEN, size))
    parts = np.array_split(grad, leaves)

    def split(tree):
        return [list(x) for x in zip(*(np.array_split(x, leaves, -1) for x in tree), strict=True)]

    by_leaf = LeafwiseState(
        tuple(LSTMState(*map(tuple, x)) for x in zip(split(h), split(c), strict=True))
    )

    def update(opt):
        return lambda meta_params, grad, state: opt.tx(meta_params).update(grad, state)

    def flat(result):
        updates, state = result
        return np.concatenate(jax.tree.leaves(updates)), *state.h, *state.c

    def joined(result):
        states = result[1].leaves
        fields = ([s.h for s in states], [s.c for s in states])
        return np.concatenate(result[0]), *(
            np.concatenate([x[k] for x in f], -1) for f in fields for k in (0, 1)
        )

    rowwise = (
        meta_params,
        grad,
        *(tuple(np.ascontiguousarray(x.T) for x in tree) for tree in (h, c)),
    )
    ours = Program(
        update(opt), (meta_params, grad, LSTMState(h, c)), lambda r: (r[0], *r[1].h, *r[1].c)
    )
    plain = Program(plain_updates, rowwise, lambda r: (r[0], *(x.T for x in (*r[1], *r[2]))))
    many = Program(update(opt), (meta_params, parts, LSTMState(h, c)), flat)
    each = Program(update(mx.optim.leafwise(opt)), (meta_params, parts, by_leaf), joined)
    half = LSTMState(*(tuple(x.astype(jnp.bfloat16) for x in tree) for tree in (h, c)))
    bfloat16 = Program(update(mx.optim.lstm(state_dtype=jnp.bfloat16)), (meta_params, grad, half))

    per_coordinate = {"unit": "ns a coordinate", "factor": 1e9 / size}
    name, small = f"{size:,} coordinates", size < 100_000
    fast = [Target("ours", "<=", 100), Target("share", ">=", 0.5)] if small else []
    found = contest(
        {"ours": ours, "vmap over coordinates": plain}, setting.limits, rounds=setting.rounds
    )
    rows = [compared("l2l_step", name, found, **per_coordinate, targets=fast)]
    found = contest({"ours": many, "leaf by leaf": each}, setting.limits, rounds=setting.rounds)
    bound = [Target("ratio", ">=", 8)] if small else []
    rows.append(
        compared("l2l_step", f"{name}, {leaves} leaves", found, **per_coordinate, targets=bound)
    )
    found = contest({"ours": bfloat16}, setting.limits, rounds=setting.rounds)
    return [*rows, compared("l2l_step", f"{name}, states in bfloat16", found, **per_coordinate)]


def l2l_bptt(setting: Setting) -> list[Row]:
    """A meta-gradient through an episode, against a vmapped scan of the vmapped LSTM that keeps all
    it makes.
    """
    num_tasks, sizes, steps, batch = (
        (2, (64, 3, 10), 3, 8) if setting.smoke else (16, (64, 20, 10), 20, 128)
    )
    opt, problem, tasks = mx.optim.lstm(), mx.problems.mlp(sizes), mx.tasks.minibatches(batch)
    loop = mx.inner(mx.l2l(opt, problem), tasks, steps)
    data = mx.data.load("digits")
    estimator, key, meta_params = (
        mx.bptt(loop, num_tasks),
        jax.random.key(1),
        opt.init(jax.random.key(2)),
    )
    state = estimator.init(jax.random.key(3), meta_params, data)

    def ours(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    def plain(key, meta_params, data):
        starts = jax.vmap(loop.init, (0, None, None))(
            jax.random.split(key, num_tasks), meta_params, data
        )

        def episode(meta_params, key, params):
            flat, unravel = ravel_pytree(params)

            def step(carry, t):
                x, h, c = carry
                batch = tasks.train(jax.random.split(jax.random.fold_in(key, t))[0], data, (), t)
                loss, grad = jax.value_and_grad(lambda x: problem.loss(key, unravel(x), batch)[0])(
                    x
                )
                update, h, c = plain_updates(meta_params, jax.lax.stop_gradient(grad), h, c)
                return (x + update, h, c), loss

            zeros = (jnp.zeros((flat.size, HIDDEN)),) * 2
            return jax.lax.scan(step, (flat, zeros, zeros), jnp.arange(steps))[1].mean()

        def meta_loss(meta_params):
            return jax.vmap(episode, (None, 0, 0))(
                meta_params, starts.key, starts.learner.params
            ).mean()

        return jax.value_and_grad(meta_loss)(meta_params)

    found = contest(
        {
            "ours": Program(ours, (key, meta_params, state, data)),
            "vmap and scan": Program(plain, (key, meta_params, data)),
        },
        setting.limits,
        rounds=setting.rounds,
    )
    size = sum(m * n + n for m, n in pairwise(sizes))
    what = f"{num_tasks} tasks x {size:,} parameters x {steps} steps"
    return [
        compared("l2l_bptt", what, found, targets=[Target("ratio", ">=", 2.2)]),
        memory("l2l_bptt", f"temporary memory, {what}", found, [Target("ratio", ">=", 5)]),
    ]


CASES = (l2l_step, l2l_bptt)
