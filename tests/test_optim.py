"""Learned optimizers against loops over coordinates in NumPy, and in the company of optax."""

from functools import lru_cache, partial
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from systems import IMAGES

import metajax as mx
from metajax.optim import _networks
from metajax.optim._ntm_bfgs import Memory, read, write

# What is compiled here runs a few steps: the time goes into optimising the program, and that is
# left out.
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
PARAMS = {
    "s": jnp.float32(0.5),
    "t": jnp.linspace(-1, 1, 12).reshape(2, 3, 2),
    "v": jnp.array([0.0, 1.0, -2.0]),
    "w": jnp.linspace(0, 1, 6).reshape(2, 3),
}
SHAPES = [x.shape for x in jax.tree.leaves(PARAMS)]
ENDS = np.cumsum([0] + [int(np.prod(s)) for s in SHAPES])
LEAVES = [slice(a, b) for a, b in pairwise(ENDS)]
OPTS = {
    "averaged": mx.optim.lstm(hidden=(4, 3), averaged=2),
    "rnnprop": mx.optim.rnnprop(hidden=(4, 3)),
    "ntm_bfgs": mx.optim.ntm_bfgs(hidden=(4, 3), averaged=2, reads=2, p=None),
    "ntm_lbfgs": mx.optim.ntm_bfgs(hidden=(4,), memory=2),
    "mlp": mx.optim.mlp(
        hidden=(5, 4), momentum_decays=(0.5, 0.99), rms_decays=(0.9, 0.999)
    ),
    "adafactor_mlp": mx.optim.adafactor_mlp(),
    "nadam": mx.optim.nadam(rate=0.1, knots=(1, 3, 10)),
    "piecewise_schedule": mx.optim.piecewise_schedule(
        optax.trace(0.9), knots=(1, 3, 10), rate=0.1
    ),
    "mlp_schedule": mx.optim.mlp_schedule(optax.trace(0.9), hidden=(3,), rate=0.1),
    "rates": mx.optim.rates(optax.trace(0.9), {**PARAMS, "t": 0.0}, rate=0.1),
}
STEPS = 4
KEY = jax.random.key(0)


def gradients():
    """Gradients ``[STEPS, P]`` over many magnitudes, some zero."""
    rng = np.random.default_rng(0)
    shape = (STEPS, ENDS[-1])
    grads = rng.normal(size=shape)
    grads *= 10.0 ** rng.integers(-6, 2, shape)
    grads[0, ::5] = 0.0
    return grads.astype(np.float32)


def tree(vector):
    leaves = []
    for at, shape in zip(LEAVES, SHAPES, strict=True):
        leaves.append(jnp.asarray(vector[at]).reshape(shape))
    return jax.tree.unflatten(jax.tree.structure(PARAMS), leaves)


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


@lru_cache
def made(name):
    """Meta-parameters, none of them zero, and the transformation with its update compiled."""

    @jit
    def perturbed(key):
        leaves, treedef = jax.tree.flatten(OPTS[name].init(key))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        noise = [
            jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
        ]
        moved = [x + 0.05 * y for x, y in zip(leaves, noise, strict=True)]
        return jax.tree.unflatten(treedef, moved)

    meta_params = perturbed(jax.random.key(1))
    tx = OPTS[name].tx(meta_params)
    return meta_params, optax.GradientTransformation(tx.init, jit(tx.update))


def run(tx, params, state, grads):
    updates = []
    for g in grads:
        new, state = tx.update(tree(g), state, params)
        params = optax.apply_updates(params, new)
        updates.append(flat(new))
    return np.stack(updates), params, state


# The same in NumPy, in float64, a coordinate at a time.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def preprocess(g, p):
    if p is None:
        return [g]
    if abs(g) < np.exp(-p):
        return [-1.0, np.exp(p) * g]
    return [np.log(abs(g)) / p, np.sign(g)]


class Controllers:
    """A stack of LSTM layers for each coordinate."""

    def __init__(self, layers, size, averaged=0):
        self.layers = layers
        self.averaged = averaged
        self.h = [np.zeros((size, len(layer["b"]) // 4)) for layer in layers]
        self.c = [np.zeros_like(h) for h in self.h]

    def __call__(self, inputs):
        for layer, h, c in zip(self.layers, self.h, self.c, strict=True):
            for n, x in enumerate(inputs):
                gates = layer["w"] @ np.concatenate([x, h[n]]) + layer["b"]
                i, j, f, o = np.split(gates, 4)
                c[n] = sigmoid(f + 1) * c[n] + sigmoid(i) * np.tanh(j)
                h[n] = sigmoid(o) * np.tanh(c[n])
            own = h[:, : self.averaged]
            own[:] = own.mean(0)
            inputs = h.copy()
        return inputs


def averaged_oracle(meta, grads, theta):
    net = Controllers(meta["lstm"], len(theta), averaged=2)
    out = meta["out"]
    for grad in grads:
        h = net([preprocess(g, 10.0) for g in grad])
        yield np.array([0.1 * (out["w"] @ x + out["b"]) for x in h])


def rnnprop_oracle(meta, grads, theta):
    net = Controllers(meta["lstm"], len(theta))
    m = np.zeros(len(theta))
    v = np.zeros(len(theta))
    first = meta["in"]
    out = meta["out"]
    for t, grad in enumerate(grads, 1):
        inputs = []
        correction = 1 - 0.95**t
        for n, g in enumerate(grad):
            m[n] = 0.95 * m[n] + 0.05 * g
            v[n] = 0.95 * v[n] + 0.05 * g * g
            s = np.sqrt(v[n] / correction) + 1e-8
            x = first["w"] @ [g / s, m[n] / correction / s] + first["b"]
            inputs.append(np.where(x > 0, x, np.exp(x) - 1))
        yield np.array([-0.1 * np.tanh(out["w"] @ x + out["b"]) for x in net(inputs)])


def ntm_oracle(meta, grads, theta, p, averaged, memory):
    size = len(theta)
    net = Controllers(meta["lstm"], size, averaged)
    written = []
    last = np.zeros((size, len(meta["out"]["w"])))

    def linear(name, inputs):
        return inputs @ meta[name]["w"].T + meta[name]["b"]

    for grad in grads:
        matrix = np.eye(size)
        for a, b in written[-memory:]:
            for k in range(len(a)):
                matrix += np.outer(a[k], b[k]) / size
        x = np.array([preprocess(g, p) for g in grad])
        address = linear("read", np.concatenate([x, last], 1))
        found = matrix @ address
        last = net(np.concatenate([x, found], 1))
        heads = linear("write", last).T
        written.append(np.split(heads, 2))
        yield 0.1 * linear("out", last)


def network(layers, x):
    for k, layer in enumerate(layers):
        x = layer["w"] @ x + layer["b"]
        x = np.maximum(x, 0) if k < len(layers) - 1 else x
    return x


def clock(t):
    timescales = [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5]
    return [np.tanh(t / timescale - 1) for timescale in timescales]


def mlp_updates(layers, features, t):
    """From features ``[P, F]``, each over its root mean square within a leaf."""
    new = np.zeros(len(features))
    for at in LEAVES:
        x = features[at] / np.sqrt(1e-5 + (features[at] ** 2).mean(0))
        out = [network(layers, np.concatenate([row, clock(t)])) for row in x]
        new[at] = [-0.001 * d * np.exp(0.001 * e) for d, e in out]
    return new


def mlp_oracle(meta, grads, theta):
    m = np.zeros((len(theta), 2))
    v = np.zeros((len(theta), 2))
    b1 = np.array([0.5, 0.99])
    b2 = np.array([0.9, 0.999])
    for t, grad in enumerate(grads):
        features = []
        for n, g in enumerate(grad):
            m[n] = b1 * m[n] + (1 - b1) * g
            v[n] = b2 * v[n] + (1 - b2) * g * g
            root = np.sqrt(v[n] + 1e-6)
            ratios = [*(m[n] / root[0]), *(m[n] / root[1])]
            features.append([g, theta[n], *m[n], *v[n], *ratios, *(1 / root)])
        new = mlp_updates(meta, np.array(features), t)
        theta = theta + new
        yield new


def safe_rsqrt(x):
    return 1 / np.sqrt(np.maximum(x, 1e-9))


def learned_decay(initial, learned):
    return 1 - (1 - np.array(initial)) * np.exp(10 * learned)


def factors(square, shape):
    """Of one leaf's average square: those of rows and columns, and of gradient and momentum."""
    x = square.reshape(shape)
    if len(shape) < 2:
        parts = (x, x, safe_rsqrt(x + 1e-9), 1 / np.sqrt(x + 1e-6))
    else:
        # Of shape [2, 3] or [2, 3, 2]: the longest are the 3 and the last of the 2.
        second = 0 if len(shape) == 2 else 2
        row = x.mean(1, keepdims=True)
        col = x.mean(second, keepdims=True)
        relative = row / (row.mean(second, keepdims=True) + 1e-9)
        by = safe_rsqrt(relative) * safe_rsqrt(col)
        parts = (row, col, by, by)
    return [np.broadcast_to(part, shape).ravel() for part in parts]


def adafactor_oracle(meta, grads, theta):
    decays = meta["decays"]
    b1 = learned_decay((0.9, 0.99, 0.999), decays["momentum"])
    b3 = learned_decay((0.9, 0.99, 0.999), decays["factored"])
    b2 = learned_decay(0.999, decays["rms"])
    m = np.zeros((len(theta), 3))
    v = np.zeros((len(theta), 1))
    squares = np.zeros((len(theta), 3))  # not yet factored
    for t, grad in enumerate(grads):
        g = grad[:, None]
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        squares = b3 * squares + (1 - b3) * (g**2 + 1e-30)
        # Averages are linear, so that those of rows can be taken of the average square at the end.
        parts = np.zeros((4, len(theta), 3))
        for at, shape in zip(LEAVES, SHAPES, strict=True):
            for k in range(3):
                parts[:, at, k] = factors(squares[at, k], shape)
        row, col, by_grad, by_m = parts
        root = np.sqrt(v + 1e-6)
        features = [g, theta[:, None], m, v, m / root, 1 / root, g * by_grad, row, col]
        features += [1 / np.sqrt(row + 1e-8), 1 / np.sqrt(col + 1e-8), m * by_m]
        new = mlp_updates(meta["network"], np.concatenate(features, 1), t)
        theta = theta + new
        yield new


def momentum(grads):
    trace = 0.0
    for t, g in enumerate(grads, 1):
        trace = g + 0.9 * trace
        yield t, trace


def piecewise_rate(log_rates, t):
    k = 0 if t < 3 else 1
    before, after = (1, 3, 10)[k : k + 2]
    share = np.log(t / before) / np.log(after / before)
    return np.exp((1 - share) * log_rates[k] + share * log_rates[k + 1])


def piecewise_oracle(meta, grads, theta):
    for t, g in momentum(grads):
        yield piecewise_rate(meta, t) * g


def nadam_oracle(meta, grads, theta):
    b1 = sigmoid(meta["b1"])
    b2 = sigmoid(meta["b2"])
    power = sigmoid(meta["power"]) / 2
    by_shape = {(): np.exp(meta["vector"]), (3,): np.exp(meta["vector"])}
    by_shape[2, 3, 2] = (6 / 100) ** -meta["fan_in"]
    by_shape[2, 3] = (2 / 100) ** -meta["fan_in"]
    factor = np.repeat([by_shape[shape] for shape in SHAPES], np.diff(ENDS))
    for t in range(1, len(grads) + 1):
        # Moments as weighted sums, the weights of the second with the sum 1.
        g = grads[:t]
        age = np.arange(t)[::-1]
        m = (1 - b1) * b1**age @ g
        v = b2**age @ g**2 / (b2**age).sum()
        m_ahead = b1 * m / (1 - b1 ** (t + 1))
        ahead = m_ahead + (1 - b1) * g[-1] / (1 - b1**t)
        rate = piecewise_rate(meta["rates"], t)
        yield -rate * factor * ahead / (v + 1e-12) ** power


def mlp_schedule_oracle(meta, grads, theta):
    for t, g in momentum(grads):
        yield 0.1 * np.exp(network(meta, np.log([t]))[0]) * g


def rates_oracle(meta, grads, theta):
    log_rates = np.concatenate(
        [np.broadcast_to(meta[k], PARAMS[k].shape).ravel() for k in sorted(meta)]
    )
    for _, g in momentum(grads):
        yield np.exp(log_rates) * g


ORACLES = {
    "averaged": averaged_oracle,
    "rnnprop": rnnprop_oracle,
    "ntm_bfgs": partial(ntm_oracle, p=None, averaged=2, memory=STEPS),
    "ntm_lbfgs": partial(ntm_oracle, p=10.0, averaged=1, memory=2),
    "mlp": mlp_oracle,
    "adafactor_mlp": adafactor_oracle,
    "nadam": nadam_oracle,
    "piecewise_schedule": piecewise_oracle,
    "mlp_schedule": mlp_schedule_oracle,
    "rates": rates_oracle,
}


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.slow
def test_equals_a_loop_over_coordinates(name):
    meta_params, tx = made(name)
    got, _, _ = run(tx, PARAMS, tx.init(PARAMS), gradients())
    meta = jax.tree.map(lambda x: np.asarray(x, np.float64), meta_params)
    want = np.stack(
        list(
            ORACLES[name](
                meta, gradients().astype(np.float64), flat(PARAMS).astype(np.float64)
            )
        )
    )
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-6)
    assert np.ptp(want) > 1e-4, "the updates differ enough to tell right from wrong"


@pytest.mark.parametrize("hidden", [(4, 3), (20, 20)])
@pytest.mark.slow
def test_a_network_on_arrays_is_that_on_their_columns(hidden, key):
    """With few weights and with many; features may be repeated, the last may be left out."""
    k_layers, *keys = jax.random.split(key, 5)
    layers = _networks.init_mlp(k_layers, (6, *hidden, 2))
    shapes = [(4, 3), (4, 1), (4, 3), (1, 1)]
    features = [
        jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)
    ]
    wide = [jnp.broadcast_to(x, (4, 3)).ravel() for x in features]
    columns = jnp.stack([*wide, *2 * [jnp.zeros(12)]])
    want = _networks.mlp(layers, columns).reshape(2, 4, 3)
    got = jit(_networks.mlp_of_arrays)(layers, features)
    np.testing.assert_allclose(jnp.stack(got), want, rtol=1e-5, atol=1e-6)

    def total(layers):
        return sum(x.sum() for x in _networks.mlp_of_arrays(layers, features))

    want = jit(jax.grad(lambda x: _networks.mlp(x, columns).sum()))(layers)
    got = jit(jax.grad(total))(layers)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.slow
def test_a_half_trained_state_can_be_saved_and_restored(name, tmp_path):
    _, tx = made(name)
    grads = gradients()
    _, params, half = run(tx, PARAMS, tx.init(PARAMS), grads[:2])
    mx.save(tmp_path / "state.npz", (params, half))
    again = mx.load(
        tmp_path / "state.npz", like=jax.eval_shape(lambda: (PARAMS, tx.init(PARAMS)))
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(again, (params, half))
    np.testing.assert_array_equal(
        run(tx, *again, grads[2:])[0], run(tx, params, half, grads[2:])[0]
    )


@pytest.mark.parametrize("name", OPTS)
def test_in_a_chain_in_a_train_state(name):
    _, tx = made(name)
    want, _, _ = run(tx, PARAMS, tx.init(PARAMS), gradients())
    state = TrainState.create(
        apply_fn=None,
        params=PARAMS,
        tx=optax.chain(optax.identity(), tx, optax.scale(1.0)),
    )
    for g, update in zip(gradients(), want, strict=True):
        before = state.params
        state = state.apply_gradients(grads=tree(g))
        np.testing.assert_allclose(
            flat(state.params), flat(before) + update, rtol=1e-5, atol=1e-6
        )
    assert int(state.step) == STEPS


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.slow
def test_scan_and_vmap_over_tasks_equal_loops(name):
    meta_params, tx = made(name)
    grads = np.stack([gradients(), -gradients()])

    def one(grads):
        inside = OPTS[name].tx(meta_params)

        def body(carry, g):
            params, state = carry
            updates, state = inside.update(tree(g), state, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(body, (PARAMS, inside.init(PARAMS)), grads)[1]

    got = jit(jax.vmap(one))(grads)
    for k in range(2):
        want, _, _ = run(tx, PARAMS, tx.init(PARAMS), grads[k])
        leaves = [np.reshape(x[k], (STEPS, -1)) for x in jax.tree.leaves(got)]
        np.testing.assert_allclose(
            np.concatenate(leaves, 1), want, rtol=1e-4, atol=1e-6
        )


ODD = {
    "w": jnp.ones((2, 3)),
    "s": jnp.float32(0.5),
    "half": jnp.ones(4, jnp.bfloat16),
    "none": None,
}
ODD |= {"empty": jnp.zeros((0, 4)), "nothing": jnp.zeros(0)}


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.parametrize(
    "params", [ODD, {"none": None}, {}], ids=["odd", "none", "empty"]
)
def test_trees_of_all_kinds_keep_shapes_dtypes_and_state(name, params):
    opt = OPTS[name] if name != "rates" else mx.optim.rates(optax.trace(0.9), params)
    keeps_shapes_dtypes_and_state(opt, params)


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_in_float64(name, dtype, x64):
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), PARAMS)
    keeps_shapes_dtypes_and_state(
        OPTS[name], {**params, "v": jax.ShapeDtypeStruct((3,), "bfloat16")}
    )


@pytest.mark.parametrize("name", ["mlp", "adafactor_mlp", "nadam"])
def test_a_weakly_typed_leaf_counts_as_what_it_is(name, x64):
    weak, strong = {"s": jnp.asarray(0.5)}, {"s": jnp.asarray(np.float64(0.5))}
    assert weak["s"].weak_type
    assert not strong["s"].weak_type
    opt = OPTS[name]
    tx = opt.tx(opt.init(KEY))
    got, want = tx.init(weak), tx.init(strong)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)


def keeps_shapes_dtypes_and_state(opt, params):
    def update(params):
        tx = opt.tx(opt.init(KEY))
        state = tx.init(params)
        updates, new = tx.update(params, state, params)
        return updates, state, new

    updates, state, new = jax.eval_shape(update, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
    assert not any(x.weak_type for x in jax.tree.leaves(new)), (
        "a weak type compiles twice"
    )


@pytest.mark.parametrize(
    "name",
    ["averaged", "rnnprop", "ntm_bfgs", "ntm_lbfgs", "mlp", "adafactor_mlp", "nadam"],
)
def test_a_tree_with_a_mask_and_an_empty_leaf_is_treated_as_without(name):
    params = {
        "w": PARAMS["w"],
        "empty": jnp.zeros((0, 4)),
        "frozen": jnp.arange(3),
        "none": None,
    }
    grads = {**params, "w": tree(gradients()[0])["w"]}
    tx = optax.masked(
        OPTS[name].tx(made(name)[0]),
        {"w": True, "empty": True, "frozen": False, "none": None},
    )
    alone = OPTS[name].tx(made(name)[0])

    @jit
    def both(grads, params):
        return tx.update(grads, tx.init(params), params)[0], alone.update(
            {"w": grads["w"]}, alone.init({"w": params["w"]}), {"w": params["w"]}
        )[0]

    got, want = both(grads, params)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(got["frozen"], grads["frozen"])
    assert got["empty"].shape == (0, 4)


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.slow
def test_meta_gradients_are_finite_where_gradients_are_zero(name):
    def loss(meta_params, params):
        tx = OPTS[name].tx(meta_params)
        state = tx.init(params)
        for _ in range(
            2
        ):  # second order: the gradient itself depends on the parameters
            updates, state = tx.update(
                jax.tree.map(lambda x: x * (x > 0), params), state, params
            )
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    meta_grads = jit(jax.grad(loss))(made(name)[0], PARAMS)
    chex.assert_tree_all_finite(meta_grads)
    assert float(optax.tree.norm(meta_grads)) > 0


STATEFUL = {
    "averaged": partial(mx.optim.lstm, hidden=(4, 3), averaged=2),
    "rnnprop": partial(mx.optim.rnnprop, hidden=(4, 3)),
    "ntm_bfgs": partial(mx.optim.ntm_bfgs, hidden=(4, 3), averaged=2, reads=2, p=None),
    "mlp": partial(
        mx.optim.mlp,
        hidden=(5, 4),
        momentum_decays=(0.5, 0.99),
        rms_decays=(0.9, 0.999),
    ),
    "adafactor_mlp": mx.optim.adafactor_mlp,
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_bfloat16_state_is_smaller_and_close(name):
    meta_params, tx = made(name)
    small = STATEFUL[name](state_dtype=jnp.bfloat16).tx(meta_params)
    state = small.init(PARAMS)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < sum(
        x.nbytes for x in jax.tree.leaves(tx.init(PARAMS))
    )
    got, _, after = run(
        optax.GradientTransformation(small.init, jit(small.update)),
        PARAMS,
        state,
        gradients(),
    )
    want, _, _ = run(tx, PARAMS, tx.init(PARAMS), gradients())
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())
    assert not np.array_equal(got, want)


@pytest.mark.parametrize("name", ["rnnprop", "mlp", "adafactor_mlp", "nadam"])
def test_leaf_by_leaf_is_the_same_where_leaves_do_not_meet(name):
    meta_params, tx = made(name)
    want, _, _ = run(tx, PARAMS, tx.init(PARAMS), gradients())
    split = mx.optim.leafwise(OPTS[name]).tx(meta_params)
    got, _, _ = run(
        optax.GradientTransformation(split.init, jit(split.update)),
        PARAMS,
        split.init(PARAMS),
        gradients(),
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["averaged", "ntm_bfgs"])
def test_leaf_by_leaf_leaves_share_nothing(name):
    meta_params, tx = made(name)
    split = mx.optim.leafwise(OPTS[name]).tx(meta_params)
    grads = tree(gradients()[1])

    @jit
    def one_step(tx_grads):
        by_leaf, _ = split.update(tx_grads, split.init(PARAMS))
        tx = OPTS[name].tx(meta_params)
        alone, _ = tx.update(tx_grads["w"], tx.init(PARAMS["w"]))
        return by_leaf, alone

    by_leaf, alone = one_step(grads)
    np.testing.assert_allclose(by_leaf["w"], alone, rtol=1e-5, atol=1e-7)
    together, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert not np.allclose(together["w"], alone, rtol=1e-3, atol=1e-5)


def test_the_memory_can_hold_the_inverse_hessian_of_bfgs():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    s = rng.normal(size=5)
    y = rng.normal(size=5)
    h = root @ root.T
    rho = 1 / (s @ y)
    project = np.eye(5) - rho * np.outer(s, y)
    want = project @ h @ project.T + rho * np.outer(s, s)

    memory = jnp.asarray(h, jnp.float32)
    # One read head, and three write heads.
    (hy,) = np.asarray(read(memory, jnp.asarray(y[None], jnp.float32)))
    left = np.stack([-rho * s, -rho * hy, (rho**2 * (y @ hy) + rho) * s])
    right = 5 * np.stack([hy, s, s])
    got = write(memory, jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_a_memory_of_writes_is_the_matrix_until_it_forgets():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    nothing = jnp.zeros((2, 2, 5))
    matrix = jnp.eye(5)
    memory = Memory(nothing, nothing)
    address = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    for t in range(3):
        matrix = write(matrix, left[t], right[t])
        memory = write(memory, left[t], right[t])
        if t < 2:
            np.testing.assert_allclose(
                read(memory, address), read(matrix, address), rtol=1e-5, atol=1e-5
            )
    later = write(write(jnp.eye(5), left[1], right[1]), left[2], right[2])
    np.testing.assert_allclose(
        read(memory, address), read(later, address), rtol=1e-5, atol=1e-5
    )


def test_numbers_of_meta_parameters():
    def count(opt):
        leaves = jax.tree.leaves(jax.eval_shape(opt.init, KEY))
        return sum(leaf.size for leaf in leaves)

    assert count(mx.optim.adafactor_mlp()) == 197
    assert (
        count(mx.optim.mlp(rms_decays=())) == 19 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2
    )
    assert count(mx.optim.lstm(averaged=5)) == 5141
    assert count(mx.optim.rnnprop()) == 60 + 2 * (40 * 80 + 80) + 21


def test_a_schedule_of_adam_is_adam_with_a_rate():
    scheduled = mx.optim.piecewise_schedule(optax.adam(1.0), rate=0.05)
    tx = scheduled.tx(scheduled.init(KEY))
    want = optax.adam(0.05)
    a = tx.init(PARAMS)
    b = want.init(PARAMS)
    for g in gradients()[:2]:
        got, a = tx.update(tree(g), a, PARAMS)
        same, b = want.update(tree(g), b, PARAMS)
        chex.assert_trees_all_close(got, same, rtol=1e-5)


def test_nadam_with_the_power_of_adam_is_nadam():
    opt, want = mx.optim.nadam(rate=0.1, power=0.4999999, b2=0.999), optax.nadam(0.1)
    tx = opt.tx(opt.init(KEY) | {"vector": jnp.zeros(())})
    grads = np.sign(gradients()) * (1 + np.abs(gradients()))
    got, _, _ = run(tx, PARAMS, tx.init(PARAMS), grads)
    np.testing.assert_allclose(
        got, run(want, PARAMS, want.init(PARAMS), grads)[0], rtol=1e-3, atol=1e-6
    )


@pytest.mark.slow
def test_groups_with_optimizers_of_their_own_are_meta_trained_together(key):
    opts = {
        "matrix": mx.optim.lstm(hidden=(2,)),
        "vector": mx.optim.rnnprop(hidden=(2,)),
    }

    def label(params):
        return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)

    def make_tx(meta_params):
        return optax.multi_transform(
            {k: opt.tx(meta_params[k]) for k, opt in opts.items()}, label
        )

    meta_params = {k: opt.init(key) for k, opt in opts.items()}
    problem = mx.problems.mlp((4, 3))
    params, _ = problem.init(key, ())
    got, _ = make_tx(meta_params).update(
        params, make_tx(meta_params).init(params), params
    )
    for name, part in (("matrix", "w"), ("vector", "b")):
        tx = opts[name].tx(meta_params[name])
        want, _ = tx.update(params[0][part], tx.init(params[0][part]))
        np.testing.assert_allclose(got[0][part], want, rtol=1e-5)
    loop = mx.inner(mx.l2l(make_tx, problem), mx.tasks.minibatches(5), 3)
    estimator = mx.bptt(loop, 2, remat=False)
    estimate, _ = jit(estimator.estimate)(
        key, meta_params, estimator.init(key, meta_params, IMAGES), IMAGES
    )
    for group in estimate.updates.values():
        assert 0 < float(optax.tree.norm(group)) < np.inf


BAD = {
    "averaged: too many": (
        lambda: mx.optim.lstm(hidden=(4, 2), averaged=3),
        ValueError,
        "averaged must be at most",
    ),
    "averaged: a float": (lambda: mx.optim.lstm(averaged=0.5), TypeError, "averaged"),
    "rnnprop: decay one": (
        lambda: mx.optim.rnnprop(b1=1.0),
        ValueError,
        "b1 must be .* below 1",
    ),
    "rnnprop: scale": (lambda: mx.optim.rnnprop(scale=0.0), ValueError, "scale"),
    "rnnprop: state dtype": (
        lambda: mx.optim.rnnprop(state_dtype=jnp.int8),
        TypeError,
        "state_dtype",
    ),
    "ntm: memory zero": (lambda: mx.optim.ntm_bfgs(memory=0), ValueError, "memory"),
    "ntm: no heads": (lambda: mx.optim.ntm_bfgs(writes=0), ValueError, "writes"),
    "mlp: a decay for decays": (
        lambda: mx.optim.mlp(momentum_decays=0.9),
        TypeError,
        "momentum_decays",
    ),
    "mlp: decay negative": (
        lambda: mx.optim.mlp(rms_decays=(-0.9,)),
        ValueError,
        "rms_decays",
    ),
    "adafactor: decays": (
        lambda: mx.optim.adafactor_mlp(momentum_decays=(0.9,)),
        ValueError,
        "as many as factored",
    ),
    "nadam: a decay of zero": (
        lambda: mx.optim.nadam(b1=0.0),
        ValueError,
        "b1 must be finite and greater than 0",
    ),
    "nadam: the power of Adam": (
        lambda: mx.optim.nadam(power=0.5),
        ValueError,
        "power",
    ),
    "nadam: knots": (
        lambda: mx.optim.nadam(knots=(3, 1)),
        ValueError,
        "knots must increase",
    ),
    "schedule: a rate for an optimizer": (
        lambda: mx.optim.piecewise_schedule(0.1),
        TypeError,
        "base",
    ),
    "schedule: knots": (
        lambda: mx.optim.piecewise_schedule(optax.sgd(1.0), (10, 1)),
        ValueError,
        "knots",
    ),
    "schedule: a knot": (
        lambda: mx.optim.piecewise_schedule(optax.sgd(1.0), 10),
        TypeError,
        "knots",
    ),
    "mlp_schedule: hidden": (
        lambda: mx.optim.mlp_schedule(optax.sgd(1.0), 8),
        TypeError,
        "hidden",
    ),
    "rates: base": (lambda: mx.optim.rates(optax.sgd, PARAMS), TypeError, "base"),
    "leafwise: a transformation": (
        lambda: mx.optim.leafwise(optax.sgd(0.1)),
        TypeError,
        "opt",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_settings(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", OPTS)
def test_bad_use(name):
    with pytest.raises(ValueError, match="meta_params"):
        OPTS[name].tx({"a": jnp.ones(())})
    with pytest.raises(TypeError, match="key"):
        OPTS[name].init(0)
    like = jax.eval_shape(OPTS[name].init, KEY)
    tx = OPTS[name].tx(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), like))
    if not name.endswith(("schedule", "rates")):
        with pytest.raises(TypeError, match="params"):
            tx.init({"a": jnp.ones(3, int)})
        with pytest.raises(ValueError, match="updates must have the tree"):
            tx.update(jnp.ones(2), tx.init(PARAMS), jnp.ones(2))
    if "mlp" in name and "schedule" not in name:
        with pytest.raises(
            ValueError, match=r"params must have the tree.*updates, state, params"
        ):
            tx.update(PARAMS, tx.init(PARAMS))
        with pytest.raises(ValueError, match="params must have the tree"):
            tx.update(PARAMS, tx.init(PARAMS), {"w": PARAMS["w"]})


def test_rates_and_leaves_that_do_not_fit():
    opt = mx.optim.rates(optax.identity(), {"w": jnp.ones(4)})
    tx = opt.tx(opt.init(KEY))
    with pytest.raises(ValueError, match=r"like must have .* leaves that broadcast"):
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))
    with pytest.raises(ValueError, match="like must have the tree structure"):
        tx.update({"v": jnp.ones(4)}, tx.init({"v": jnp.ones(4)}))
    tx = mx.optim.leafwise(opt).tx(opt.init(KEY))
    with pytest.raises(ValueError, match="they have 1 leaves"):
        tx.update({"w": jnp.ones(4)}, tx.init(PARAMS))


@pytest.mark.parametrize(
    "wrap",
    [
        mx.optim.piecewise_schedule,
        mx.optim.mlp_schedule,
        partial(mx.optim.rates, like=PARAMS),
    ],
)
def test_extra_arguments_reach_the_base(wrap):
    base = optax.polyak_sgd()
    opt = wrap(base, rate=0.5)
    tx = opt.tx(opt.init(KEY))
    grads = tree(gradients()[1])
    got, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value=3.0)
    want, _ = base.update(grads, base.init(PARAMS), PARAMS, value=3.0)
    chex.assert_trees_all_close(got, optax.tree.scale(0.5, want), rtol=1e-5)
