"""Celo and Celo2 against vectors of others, loops in NumPy, and what must change nothing."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES

import metajax as mx
from metajax.optim import _leaf_moments
from metajax.optim._orthogonalize import orthogonalize

VECTORS = json.loads(Path(__file__).with_name("celo2_vectors.json").read_text())
RULES = {"celo2": mx.optim.celo2, "celo2-base": mx.optim.celo2_base}


def meta_params_of_vectors():
    """From the authors' layout, without the outputs that are not used."""
    x = {name: np.array(value) for name, value in VECTORS["network"].items()}
    first = np.concatenate([x[f"w0__{i}"] for i in range(14)])
    weights = (first.T, x["w1"].T, x["w2"].T[:1])
    biases = (x["b0"], x["b1"], x["b2"][:1])
    return [{"w": w, "b": b} for w, b in zip(weights, biases, strict=True)]


def run(tx, params, grads):
    """The parameters after each step."""

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    after = []
    for grad in grads:
        params, state = step(params, state, grad)
        after.append(jax.tree.map(np.asarray, params))
    return after


@pytest.mark.parametrize(
    ("rule", "weight_decay", "dtype", "tolerance"),
    [
        ("celo2", 0.1, "float64", 1e-11),
        ("celo2", 0.1, "float32", 5e-7),
        pytest.param("celo2", 0.0, "float64", 1e-11, marks=pytest.mark.slow),
        pytest.param("celo2-base", 0.0, "float64", 1e-11, marks=pytest.mark.slow),
        pytest.param("celo2-base", 0.0, "float32", 5e-7, marks=pytest.mark.slow),
    ],
)
def test_the_vectors(rule, weight_decay, dtype, tolerance, x64):
    """All cases of one rule as one tree."""
    kind = (rule, weight_decay)
    cases = {
        case["name"]: case
        for case in VECTORS["cases"]
        if (case["rule"], case["weight_decay"]) == kind
    }

    def tree(part):
        return {name: np.array(part(case), dtype) for name, case in cases.items()}

    def gradients(t):
        return tree(
            lambda case: case["steps"][min(t, len(case["steps"]) - 1)]["gradient"]
        )

    meta_params = jax.tree.map(lambda x: x.astype(dtype), meta_params_of_vectors())
    [rate] = {case["rate"] for case in cases.values()}
    tx = RULES[rule](rate, weight_decay).tx(meta_params)
    after = run(tx, tree(lambda case: case["params"]), map(gradients, range(3)))
    for name, case in cases.items():
        for got, step in zip(after, case["steps"], strict=False):
            want = step["params_after"]
            np.testing.assert_allclose(
                got[name], want, rtol=0, atol=tolerance, err_msg=name
            )


def test_the_vectors_of_biases(x64):
    """Adam without correction, whose rate is 20 times the other's."""
    branch = VECTORS["bias_branch"]
    tx = mx.optim.celo2(
        branch["rate"],
        branch["weight_decay"],
        multiplier=branch["multiplier"],
        debias=False,
    ).tx(meta_params_of_vectors())
    grads = [np.array(step["gradient"]) for step in branch["steps"]]
    after = run(tx, np.array(branch["params"]), grads)
    for got, step in zip(after, branch["steps"], strict=True):
        np.testing.assert_allclose(got, step["params_after"], rtol=0, atol=1e-14)


def test_biases_are_left_to_adam(key):
    schedule = optax.linear_schedule(1e-3, 0.0, 3)
    tx = mx.optim.celo2(schedule, 0.1).tx(mx.optim.celo2().init(key))
    theirs = optax.adamw(lambda t: 20 * schedule(t), 0.9, 0.95, weight_decay=0.1)
    grads = list(jax.random.normal(key, (3, 5)))
    for got, want in zip(
        *(run(x, jnp.ones(5), grads) for x in (tx, theirs)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_step_by_the_inputs_of_a_layer(key):
    """Its root mean square is the rate over the root of the inputs, of kernels at all places."""
    params = {
        "w": jnp.ones((16, 3)),
        "kernel": jnp.ones((2, 2, 4, 9)),
        "b": jnp.ones(5),
    }
    grads = optax.tree.random_like(key, params)
    optimizers = [
        mx.optim.celo2(0.1, scale=mx.optim.by_fan_in, multiplier=2.0),
        mx.optim.celo2(0.1, multiplier=2.0),
    ]
    meta_params = optimizers[0].init(key)
    scaled, plain = (
        tx.update(grads, tx.init(params), params)[0]
        for tx in (x.tx(meta_params) for x in optimizers)
    )
    for name in ("w", "kernel"):
        np.testing.assert_allclose(scaled[name], plain[name] / 4, rtol=1e-6)
        size = jnp.sqrt(jnp.square(scaled[name]).mean())
        np.testing.assert_allclose(size, 0.1 / 4, rtol=1e-5)
    np.testing.assert_array_equal(scaled["b"], plain["b"])


@pytest.mark.parametrize("case", VECTORS["newton_schulz"])
def test_newton_schulz(case, x64):
    x = np.array(case["input"])
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(x)), case["output"], atol=1e-12
    )


def test_newton_schulz_of_rank_one_and_zero(x64, key):
    x = jnp.outer(jnp.array([3.0, -4.0]), jnp.array([1.0, 2.0, 2.0]))
    values = np.linalg.svd(orthogonalize(x), compute_uv=False)
    np.testing.assert_allclose(values, [0.69644, 0.0], atol=1e-5)
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(orthogonalize(zero), zero)
    slope = jax.grad(lambda x: orthogonalize(x)[0, 0])(zero)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.slow
def test_rows_and_columns_may_be_permuted_and_turned(name, x64, key):
    """Also: steps have the length of the rate, and a leaf does not see the others."""
    rate, rows, columns = 1e-3, np.array([2, 0, 1, 3]), np.array([1, 2, 0])
    tx = RULES[name](rate).tx(meta_params_of_vectors())
    w, *grads = np.asarray(jax.random.normal(key, (4, 4, 3), float))

    def tree(x):
        permuted = x[rows][:, columns]
        return {"w": x, "permuted": permuted, "turned": x.T, "other": 2 * x[:2]}

    before = w
    for after in run(tx, tree(w), map(tree, grads)):
        again = after["w"][rows][:, columns]
        np.testing.assert_allclose(after["permuted"], again, atol=1e-12)
        np.testing.assert_allclose(after["turned"], after["w"].T, atol=1e-12)
        step = after["w"] - before
        np.testing.assert_allclose(jnp.sqrt((step**2).mean()), rate, rtol=1e-6)
        before = after["w"]
    alone = run(tx, {"w": w}, [{"w": g} for g in grads])
    np.testing.assert_allclose(alone[-1]["w"], after["w"], atol=1e-14)


# Celo: the rule and the schedule in NumPy, a number at a time.


def celo_schedule(weights, losses, num_steps):
    lengths = 10 ** np.linspace(1, np.log10(num_steps), 10)
    decays = np.exp(-1 / lengths)
    means, minima = np.zeros(10), np.full(10, 999999999999.0)
    h, c = weights["hidden"], weights["cell"]
    for t, loss in enumerate(losses):
        if t:
            loss = min(2 * abs((means / (1 - decays ** (t + 1))).max()), loss)
        means = decays * means + (1 - decays) * loss
        corrected = means / (1 - decays ** (t + 1))
        minima = np.minimum(minima, corrected)
        times = [0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1]
        x = [np.tanh(10 * (t / num_steps - a)) for a in times]
        for j in range(9):
            above = max(1e-8, corrected[j + 1] - minima[j])
            x.append(
                np.clip((corrected[j] - minima[j]) / above - 1, -1, 1) if t > 1 else 0
            )

        def layer(name, x):
            return weights[name]["w"] @ x + weights[name]["b"]

        u = layer("linear", x) + np.maximum(layer("rectified", x), 0)
        i, g, f, o = np.split(layer("lstm", np.concatenate([u, h])), 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        yield 0.1 * np.exp(layer("out", h))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rsqrt(x):
    return 1 / np.sqrt(x)


def celo_steps(network, theta, grads, factors):
    """Of a matrix with more rows than columns, or of a vector."""
    decays, epsilon = (0.9, 0.99, 0.999), 1e-6
    m, square, v = np.zeros((3, *theta.shape)), np.zeros((3, *theta.shape)), 0.0
    for g, factor in zip(grads, factors, strict=True):
        g = np.clip(g, -1000, 1000)
        v = 0.999 * v + 0.001 * g**2
        for k, b in enumerate(decays):
            m[k] = b * m[k] + (1 - b) * g
            square[k] = b * square[k] + (1 - b) * (g**2 + 1e-30)

        # Averages are linear: those of rows can be taken of the average square.
        ones = np.ones_like(square)
        row = square.mean(1, keepdims=True) if theta.ndim > 1 else square
        col = square.mean(2, keepdims=True) if theta.ndim > 1 else square
        if theta.ndim > 1:
            relative = row / (row.mean(2, keepdims=True) + 1e-9)
            of_grad = rsqrt(np.maximum(relative, 1e-9)) * rsqrt(np.maximum(col, 1e-9))
            of_momentum = of_grad
        else:
            of_grad, of_momentum = rsqrt(np.maximum(square + 1e-9, 1e-9)), rsqrt(square)

        x = [g, np.clip(g, -0.1, 0.1), theta, *m, v, *(m * rsqrt(v + epsilon))]
        x += [rsqrt(v + epsilon), *(g * of_grad), g * rsqrt(v + epsilon)]
        x += [*(row * ones), *(col * ones)]
        x += [
            *(rsqrt(row + 1e-8) * ones),
            *(rsqrt(col + 1e-8) * ones),
            *(m * of_momentum),
        ]
        x = np.array([y * rsqrt(1e-5 + (y**2).mean()) for y in x]).reshape(30, -1)
        for k, layer in enumerate(network):
            x = layer["w"] @ x + layer["b"][:, None]
            x = np.maximum(x, 0) if k < 2 else x
        d, e = x.reshape(2, *theta.shape)
        scale = np.sqrt((theta**2).mean() + 1e-9)
        theta = theta - 0.001 * factor * d * np.exp(0.001 * e) * scale
        yield theta


@pytest.mark.parametrize("num_steps", [20, 2])
@pytest.mark.slow
def test_celo_is_its_loops(num_steps, x64, key):
    """Beyond the length of the run too, and with a loss that leaps."""
    losses = [2.3, 2.2, 2.4, 1.9, 9.0, 1.7, 1.5, 1.6]
    leaves = {"w": (4, 3), "w2": (4, 3), "b": (5,), "s": ()}
    shapes = {
        name: jax.ShapeDtypeStruct(shape, float) for name, shape in leaves.items()
    }
    meta_params = wide_celo_params(key)
    numpy_params = jax.tree.map(np.asarray, meta_params)

    @jax.jit
    def step(num_steps, grads, state, params, loss):
        tx = mx.optim.celo(num_steps).tx(meta_params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    random = jax.jit(partial(optax.tree.random_like, target_tree=shapes))
    start = random(key)
    keys = jax.random.split(key, len(losses))
    grads = [jax.tree.map(lambda x: np.asarray(x) ** 3, random(k)) for k in keys]
    factors = list(celo_schedule(numpy_params["schedule"], losses, num_steps))
    assert np.ptp(factors) > 0.01

    params = start
    state = jax.jit(mx.optim.celo(num_steps).tx(meta_params).init)(start)
    want = {
        name: celo_steps(
            numpy_params["rule"],
            np.atleast_1d(start[name]),
            [np.atleast_1d(g[name]) for g in grads],
            factors,
        )
        for name in leaves
    }
    for grad, loss in zip(grads, losses, strict=True):
        params, state = step(
            jnp.int32(num_steps), grad, state, params, jnp.float64(loss)
        )
        for name, shape in leaves.items():
            expected = next(want[name]).reshape(shape)
            np.testing.assert_allclose(params[name], expected, rtol=1e-12, err_msg=name)


def wide_celo_params(key):
    """Meta-parameters in float64, none of them 0, with which steps differ."""
    like = jax.eval_shape(mx.optim.celo(1).init, key)
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, float), like)

    @jax.jit
    def draw(key):
        return optax.tree.scale(0.3, optax.tree.random_like(key, wide))

    return draw(key)


# Both in the company of the package.

OPTIMIZERS = {
    "celo": mx.optim.celo(100),
    "celo2": mx.optim.celo2(),
    "celo2_base": mx.optim.celo2_base(),
}


def made(name, key):
    return jax.jit(OPTIMIZERS[name].init)(key)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_bfloat16_is_computed_in_float32(name, key):
    """As from the same numbers in float32, whose update is rounded at its end; so for the state."""
    tx = OPTIMIZERS[name].tx(made(name, key))
    params = {"w": np.asarray(jax.random.normal(key, (5, 4))), "b": np.ones(3)}
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(np.float32), narrow)

    @jax.jit
    def step(params):
        return tx.update(params, tx.init(params), params, **loss_of(name))

    got, got_state = step(narrow)
    want, want_state = step(wide)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, np.asarray(y).astype(jnp.bfloat16))
    for x, y in zip(
        jax.tree.leaves(got_state), jax.tree.leaves(want_state), strict=True
    ):
        assert x.dtype == y.dtype != jnp.bfloat16
        np.testing.assert_array_equal(x, y)


def loss_of(name):
    return {"value": jnp.float32(2.0)} if name == "celo" else {}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_leaves_of_one_shape_are_one_program(name, key):
    """Five matrices need as many roots and products as one."""
    tx = OPTIMIZERS[name].tx(made(name, key))

    def count(num_leaves):
        params = [jnp.ones((3, 2))] * num_leaves
        args = (params, tx.init(params), params)
        text = str(jax.make_jaxpr(partial(tx.update, **loss_of(name)))(*args))
        return [text.count(f" {op}") for op in ("rsqrt", "dot_general")]

    assert count(5) == count(1)
    assert count(1)[0] > 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.slow
def test_leaves_in_turn_are_moved_as_at_once(dtype, key, monkeypatch):
    """As large ones are; meta-gradients too, and many networks at once."""
    optimizer = OPTIMIZERS["celo2_base"]
    params = list(jax.random.normal(key, (3, 5, 4), dtype))
    networks = jax.vmap(optimizer.init)(jax.random.split(key, 2))

    def loss(network):
        tx = optimizer.tx(network)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
        return sum(x.astype(jnp.float32).sum() for x in updates), (updates, state)

    def run():
        return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))(networks)

    want = run()
    monkeypatch.setattr(_leaf_moments, "_ONE_BY_ONE_FROM", 1)
    got = run()
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        tolerance = 1e-2 if x.dtype == jnp.bfloat16 else 1e-4
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * np.abs(y).max()
        )


def test_a_cpu_alone_has_a_loop_over_large_leaves(key, monkeypatch):
    monkeypatch.setattr(_leaf_moments, "_ONE_BY_ONE_FROM", 1)
    tx = OPTIMIZERS["celo2_base"].tx(made("celo2_base", key))
    params = list(jnp.ones((3, 5, 4)))
    traced = jax.jit(tx.update).trace(params, tx.init(params), params)
    has_loop = {
        platform: "while" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert has_loop == {"cpu": True, "cuda": False, "tpu": False}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_four_numbers_a_coordinate(name, key):
    tx = OPTIMIZERS[name].tx(made(name, key))
    rows, columns = 30, 20
    state = tx.init({"w": jnp.ones((rows, columns)), "none": jnp.ones((0, 3))})
    own = 0 if name != "celo" else 1 + 2 * 10 + 2 * 64
    want = 4 * rows * columns + 3 * (rows + columns) + own
    assert optax.tree.size(state) in (want, want + 1)  # a count, of Adam's


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_it_is_meta_trained_and_stored(name, tmp_path):
    """An evolution strategy moves every meta-parameter, and a state can be saved."""
    learner = mx.l2l(OPTIMIZERS[name], mx.problems.mlp((4, 3)))
    loop = mx.inner(learner, mx.tasks.minibatches(4), horizon=4)
    trainer = mx.trainer(mx.pes(loop, 2, 0.01, 2), optax.sgd(0.1))
    meta_params = learner.meta(jax.random.key(1))
    state = trainer.init(jax.random.key(0), meta_params, IMAGES)
    new, metrics = jax.jit(trainer.step)(state, IMAGES)
    assert np.isfinite(metrics["loss"])
    for before, after in zip(
        *map(jax.tree.leaves, (meta_params, new.meta_params)), strict=True
    ):
        assert (before != after).any()
    mx.save(tmp_path / "state.npz", new)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(*map(as_numbers, (x, y))),
        mx.load(tmp_path / "state.npz", like=new),
        new,
    )


@pytest.mark.parametrize("name", ["celo", "celo2"])
@pytest.mark.slow
def test_meta_gradients_are_those_of_finite_differences(name, x64, key):
    """Through three steps, along a random direction of the meta-parameters."""
    k_start, k_direction, k_params, k_matrix = jax.random.split(key, 4)
    optimizer = OPTIMIZERS[name]
    like = jax.eval_shape(optimizer.init, key)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, float), like)
    start, direction = (optax.tree.random_like(k, like) for k in (k_start, k_direction))
    matrix = jax.random.normal(k_matrix, (3, 3), float)

    def loss(params):
        return ((matrix @ params) ** 2).sum()

    @jax.jit
    def value_and_slope(size):
        meta_params = optax.tree.add_scale(start, size, direction)
        return jax.value_and_grad(end)(meta_params)

    def end(meta_params):
        tx = optimizer.tx(meta_params)
        params = jax.random.normal(k_params, (3, 2), float)
        state = tx.init(params)
        for _ in range(3):
            value, grads = jax.value_and_grad(loss)(params)
            extra = {"value": value} if name == "celo" else {}
            updates, state = tx.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return loss(params)

    size = 1e-6
    above, below = (value_and_slope(x)[0] for x in (size, -size))
    _, slope = value_and_slope(0.0)
    want = (above - below) / (2 * size)
    assert abs(want) > 1e-5
    np.testing.assert_allclose(optax.tree.vdot(slope, direction), want, rtol=1e-4)


def as_numbers(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


W = {"w": jnp.ones((3, 2))}


def updated(opt, grads=W, params=W, **extra):
    tx = opt.tx(opt.init(jax.random.key(0)))
    return tx.update(grads, tx.init(W), params, **extra)


MISTAKES = {
    "rate 0": (lambda: mx.optim.celo2(0.0), "rate must be finite and greater than 0"),
    "rates": (lambda: mx.optim.celo2_base(jnp.ones(2)), "rate must be a .* scalar"),
    "num_steps": (lambda: mx.optim.celo(0), "num_steps must be at least 1"),
    "num_steps [2]": (
        lambda: mx.optim.celo(jnp.ones(2, int)),
        "num_steps must be a scalar",
    ),
    "no params": (lambda: updated(mx.optim.celo2(), params=None), "params are needed"),
    "no params, celo": (
        lambda: updated(mx.optim.celo(3), params=None, value=1.0),
        "params are needed",
    ),
    "no loss": (lambda: updated(mx.optim.celo(3)), "value, the loss, is needed"),
    "other gradients": (
        lambda: updated(mx.optim.celo2_base(), {"w": jnp.ones((2, 3))}),
        "updates must have the tree of the params given to init",
    ),
    "integers": (
        lambda: updated(mx.optim.celo2(), params={"w": jnp.ones((3, 2), int)}),
        r"params\['w'\] must be a floating-point array",
    ),
    "another rule": (
        lambda: mx.optim.celo2().tx(mx.optim.celo(3).init(jax.random.key(0))),
        "meta_params must have the tree and the shapes",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    call, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(lambda: (call(), ())[1])
