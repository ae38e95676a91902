"""The LSTM transformation against a loop over coordinates, and in the company of optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_coordinate(meta_params, grads, p, scale):
    """The optimizer for a single coordinate, in NumPy float64: gradients in, updates out."""
    layers = [
        {k: np.asarray(v, np.float64) for k, v in layer.items()}
        for layer in meta_params["lstm"]
    ]
    w, b = (np.asarray(meta_params["out"][k], np.float64) for k in ("w", "b"))
    zeros = [np.zeros(len(x["b"]) // 4) for x in layers]
    states = list(zip(zeros, zeros, strict=True))
    updates = []
    for g in grads:
        if p is None:
            x = np.array([g])
        elif abs(g) >= np.exp(-p):
            x = np.array([np.log(abs(g)) / p, np.sign(g)])
        else:
            x = np.array([-1.0, np.exp(p) * g])
        for k, layer in enumerate(layers):
            h, c = states[k]
            i, j, f, o = np.split(layer["w"] @ np.concatenate([x, h]) + layer["b"], 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
            h = sigmoid(o) * np.tanh(c)
            states[k], x = (h, c), h
        updates.append(scale * (w @ x + b))
    return np.array(updates)


@pytest.mark.parametrize("preset", [*mx.optim.PRESETS, "raw"])
def test_equals_a_loop_over_coordinates(preset):
    settings = mx.optim.PRESETS.get(preset, {"p": None, "scale": 0.1})
    opt = mx.optim.lstm(**settings)
    meta_params = opt.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    # Gradients over all magnitudes: zero, below the threshold exp(-p), above it.
    grads = rng.normal(size=(7, 6)) * 10.0 ** rng.integers(-7, 2, (7, 6))
    grads[0, 0] = 0.0
    tx = opt.tx(meta_params)
    state, got = tx.init(jnp.zeros(6)), []
    for g in grads:
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state)
        got.append(updates)
    want = np.stack(
        [one_coordinate(meta_params, grads[:, k], **settings) for k in range(6)], 1
    )
    # With products in TF32 they would be 6e-4 apart: the optimizer asks for full float32.
    np.testing.assert_allclose(np.stack(got), want, rtol=2e-4, atol=1e-6)


def test_number_of_parameters(key):
    count = lambda opt: sum(x.size for x in jax.tree.leaves(opt.init(key)))  # noqa: E731
    assert count(mx.optim.lstm()) == 5141
    assert count(mx.optim.lstm(p=None)) == 5061


OPT = mx.optim.lstm(hidden=(4, 3))
META = OPT.init(jax.random.key(3))
PARAMS = {
    "w": jnp.linspace(-1, 1, 6).reshape(2, 3),
    "scalar": jnp.float32(0.5),
    "empty": jnp.zeros((0, 4)),
    "half": jnp.linspace(0, 1, 4, dtype=jnp.bfloat16),
    "none": None,
}


def loss(params):
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(params)]
    return sum(jnp.sum((x - 0.3) ** 2) for x in leaves)


def run(tx, params, steps=3, jit=True):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_trees_of_all_kinds_keep_their_dtypes():
    params, _ = run(OPT.tx(META), PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, PARAMS)
    chex.assert_tree_all_finite(params)
    assert not np.allclose(params["w"], PARAMS["w"])


def test_each_leaf_is_treated_as_if_alone():
    together, _ = run(OPT.tx(META), PARAMS)
    for name in ("w", "scalar", "half"):
        alone, _ = run(OPT.tx(META), {name: PARAMS[name]})
        np.testing.assert_allclose(
            np.asarray(alone[name], np.float32),
            np.asarray(together[name], np.float32),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.slow
def test_in_chain_jit_and_scan():
    tx = optax.chain(optax.clip_by_global_norm(1.0), OPT.tx(META), optax.scale(0.5))
    params = {"w": PARAMS["w"]}
    looped, _ = run(tx, params, 4, jit=False)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, None, length=4))(
        (params, tx.init(params))
    )
    # On GPUs too, where kernels chosen for each would differ by 2e-5 in TF32.
    chex.assert_trees_all_close(looped, scanned, rtol=1e-5, atol=1e-6)


def test_in_masked():
    tx = optax.masked(OPT.tx(META), {"a": True, "b": False})
    params = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.int32)}
    state = tx.init(params)
    grads = {"a": jnp.ones(3), "b": jnp.full(2, 7)}
    updates, _ = tx.update(grads, state, params)
    assert not np.allclose(updates["a"], 1.0)
    np.testing.assert_array_equal(updates["b"], grads["b"])


def test_in_multi_transform():
    other = OPT.init(jax.random.key(4))
    transforms = {"x": OPT.tx(META), "y": OPT.tx(other)}
    tx = optax.multi_transform(transforms, {"a": "x", "b": "y"})
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    got, _ = run(tx, params)
    for name, meta in (("a", META), ("b", other)):
        want, _ = run(OPT.tx(meta), {name: params[name]})
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_in_multi_steps():
    tx = optax.MultiSteps(OPT.tx(META), every_k_schedule=2)
    params = {"a": jnp.ones(3)}
    state = tx.init(params)
    none, state = tx.update({"a": jnp.full(3, 0.1)}, state, params)
    some, state = tx.update({"a": jnp.full(3, 0.3)}, state, params)
    np.testing.assert_array_equal(none["a"], 0)
    plain = OPT.tx(META)
    want, _ = plain.update({"a": jnp.full(3, 0.2)}, plain.init(params), params)
    np.testing.assert_allclose(some["a"], want["a"], rtol=1e-5)


def test_in_inject_hyperparams():
    def make(scale):
        return optax.chain(OPT.tx(META), optax.scale(scale))

    tx = optax.inject_hyperparams(make)(scale=0.5)
    params = {"a": jnp.ones(3)}
    state = tx.init(params)
    half, _ = tx.update({"a": jnp.ones(3)}, state, params)
    state.hyperparams["scale"] = jnp.float32(1.0)
    whole, _ = tx.update({"a": jnp.ones(3)}, state, params)
    np.testing.assert_allclose(whole["a"], 2 * half["a"], rtol=1e-6)


@pytest.mark.slow
def test_under_vmap_over_tasks_and_over_meta_params():
    params = {"a": jax.random.normal(jax.random.key(0), (5, 3))}
    batched = jax.vmap(lambda p: run(OPT.tx(META), p, jit=False)[0])(params)
    metas = jax.vmap(OPT.init)(jax.random.split(jax.random.key(9), 5))
    both = jax.vmap(lambda m, p: run(OPT.tx(m), p, jit=False)[0])(metas, params)
    for k in range(5):
        one = {"a": params["a"][k]}
        want, _ = run(OPT.tx(META), one)
        np.testing.assert_allclose(batched["a"][k], want["a"], rtol=1e-5)
        meta = jax.tree.map(lambda x, k=k: x[k], metas)
        want, _ = run(OPT.tx(meta), one)
        np.testing.assert_allclose(both["a"][k], want["a"], rtol=1e-4)


def test_inside_cond():
    tx = OPT.tx(META)
    params = jnp.ones(3)
    state = tx.init(params)

    @jax.jit
    def f(grads, state, on):
        def skip():
            return jnp.zeros_like(grads), state

        return jax.lax.cond(on, lambda: tx.update(grads, state), skip)

    assert float(jnp.abs(f(params, state, True)[0]).sum()) > 0
    assert float(jnp.abs(f(params, state, False)[0]).sum()) == 0


def test_a_bfloat16_state_is_close_and_half_the_size():
    small = mx.optim.lstm(hidden=(4, 3), state_dtype=jnp.bfloat16)
    params = {"w": PARAMS["w"]}
    a, state = run(small.tx(META), params)
    b, _ = run(OPT.tx(META), params)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))
    np.testing.assert_allclose(a["w"], b["w"], atol=2e-3)


def test_as_the_optimizer_of_a_train_state():
    from flax import linen
    from flax.training.train_state import TrainState

    model = linen.Dense(2)
    x = jnp.ones((4, 3))
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), x)["params"],
        tx=OPT.tx(META),
    )
    grads = jax.grad(lambda p: (state.apply_fn({"params": p}, x) ** 2).mean())(
        state.params
    )
    new = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, grads)
    assert int(new.step) == 1
    assert not np.allclose(new.params["kernel"], state.params["kernel"])


@pytest.mark.slow
def test_many_coordinates_side_by_side_are_those_one_by_one():
    meta_params = mx.optim.lstm(hidden=(4,)).init(jax.random.key(1))
    grads = jax.random.normal(
        jax.random.key(2), (3, 5, 200)
    )  # tasks, steps, coordinates
    weights = jax.random.normal(jax.random.key(3), (200,))

    def total(meta_params, grads):
        tx = mx.optim.lstm(hidden=(4,)).tx(meta_params)

        def step(state, grad):
            updates, state = tx.update(grad, state)
            return state, updates @ weights

        return jax.lax.scan(step, tx.init(weights), grads)[1].sum()

    together = jax.value_and_grad(lambda m, g: jax.vmap(total, (None, 0))(m, g).sum())
    alone = [jax.value_and_grad(total)(meta_params, g) for g in grads]
    chex.assert_trees_all_close(
        together(meta_params, grads),
        jax.tree.map(lambda *x: sum(x), *alone),
        rtol=1e-4,
        atol=1e-5,
    )
    spoilt = jax.vmap(total, (None, 0))(meta_params, grads.at[0, 0, 0].set(jnp.nan))
    np.testing.assert_allclose(spoilt[1:], [value for value, _ in alone[1:]], rtol=1e-4)
    assert np.isnan(spoilt[0])
