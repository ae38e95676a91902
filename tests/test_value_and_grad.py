"""The gradient that is differentiated once more: JAX's, for less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES, MINIBATCHES, MLP

import metajax as mx
from metajax import _trees
from metajax.learners import _descent


def problem_of(x, key, labels):
    """A loss that reads closed-over arrays, labels and a key, and says more than its value."""

    def loss(params, scale):
        hidden = jnp.tanh(params["w"] @ x)
        noise = jax.random.normal(key, hidden.shape)
        value = scale * jnp.sum(hidden**2) + hidden[labels].sum() + noise @ hidden
        value += jnp.sin(params["b"] * x.sum())
        return value, {"cube": jnp.sum(hidden**3), "labels": labels}

    return loss


def unrolled(value_and_grad, wrap=lambda f: f):
    """The sum of what three steps of descent report, of what the loss closes over."""
    labels = jnp.array([1, 2])
    start = {"w": jnp.ones((4, 3)) / 3, "b": jnp.ones(()) * 0.3}

    def run(x):
        def body(params, key):
            loss = problem_of(x, key, labels)
            (value, metrics), grads = value_and_grad(loss, has_aux=True)(
                params, x.sum()
            )
            params = optax.tree.add_scale(params, -0.1, grads)
            return params, value + metrics["cube"] + metrics["labels"].sum()

        keys = jax.random.split(jax.random.key(0), 3)
        params, values = jax.lax.scan(wrap(body), start, keys)
        return values.sum() + params["b"]

    return run


X = np.array([[0.3, -0.2, 0.5], [1.0, 0.1, -0.7]])


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["kept", "anew"])
@pytest.mark.slow
def test_derivatives_are_those_of_jax(x64, mode, wrap):
    found = jax.jit(jax.vmap(mode(unrolled(mx.value_and_grad, wrap))))(X)
    want = jax.jit(jax.vmap(mode(unrolled(jax.value_and_grad))))(X)
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_derivatives_are_those_of_finite_differences(x64):
    run = jax.jit(unrolled(mx.value_and_grad))
    found = jax.grad(run)(X[0])
    for i, unit in enumerate(1e-5 * np.eye(3)):
        want = (run(X[0] + unit) - run(X[0] - unit)) / 2e-5
        np.testing.assert_allclose(found[i], want, rtol=1e-7)


@pytest.mark.slow
def test_descent_on_a_quadratic_has_a_closed_form(x64):
    """The Jacobian of steps of size a on a quadratic with the Hessian H is (I - a H)^n."""
    root = np.random.default_rng(0).normal(size=(3, 3))
    hessian = root @ root.T

    def descend(x):
        for _ in range(4):
            _, grads = mx.value_and_grad(lambda x: x @ hessian @ x / 2)(x)
            x = x - 0.1 * grads
        return x

    want = np.linalg.matrix_power(np.eye(3) - 0.1 * hessian, 4)
    np.testing.assert_allclose(jax.jacrev(descend)(np.ones(3)), want, rtol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(descend)(np.ones(3)), want, rtol=1e-12)


@pytest.mark.slow
def test_the_mixed_term_alone():
    def grad(c):
        return mx.value_and_grad(lambda params: c @ params)(jnp.ones(3))[1]

    np.testing.assert_array_equal(jax.jacrev(grad)(jnp.arange(3.0)), np.eye(3))
    np.testing.assert_array_equal(jax.jacfwd(grad)(jnp.arange(3.0)), np.eye(3))


def test_values_of_all_kinds():
    """Scalar parameters, none that do not adapt, no metrics, a bfloat16 network."""

    def after(params):
        value, grads = mx.value_and_grad(lambda p: jnp.sin(p[0]) ** 2)(params)
        return value + grads[0]

    params = (jnp.float32(0.5), None)
    want = np.sin(1.0) + 2 * np.cos(1.0)  # of sin^2 and its derivative sin(2 p)
    np.testing.assert_allclose(jax.grad(after)(params)[0], want, rtol=1e-6)

    weights = jnp.ones(3, jnp.bfloat16)

    def loss(w):
        return jnp.sum(w.astype(jnp.float32) ** 3)

    grads = mx.value_and_grad(loss)(weights)[1]
    assert grads.dtype == jnp.bfloat16
    twice = jax.grad(lambda w: mx.value_and_grad(loss)(w)[1].sum())(weights)
    np.testing.assert_array_equal(twice, 6.0)


@pytest.mark.slow
def test_a_third_derivative_is_refused():
    def after(params):
        _, grads = mx.value_and_grad(lambda params: jnp.sum(params**3))(params)
        return jnp.sum(grads**2)

    with pytest.raises(TypeError, match=r"take jax\.value_and_grad where third"):
        jax.hessian(after)(jnp.ones(2))
    with pytest.raises(TypeError):  # within a scan, in JAX's words
        jax.hessian(unrolled(mx.value_and_grad))(jnp.asarray(X[0]))


def test_its_gradient_has_the_name_by_which_it_is_kept():
    jaxpr = jax.make_jaxpr(mx.value_and_grad(lambda x: x**2))(1.0)
    assert "name=inner_gradient" in str(jaxpr)


TAKE_GRADIENTS = {
    "maml": mx.maml(MLP, 0.1),
    "anil": mx.anil(MLP, 0.1, lambda name: name == "0/b"),
    "meta_sgd": mx.meta_sgd(MLP, 0.1),
    "maml_plus_plus": mx.maml_plus_plus(MLP, mx.step_weights(5, 0.5), 0.1),
    "l2l": mx.l2l(mx.optim.lstm(hidden=(2,)), MLP, second_order=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_GRADIENTS)
def test_learners_have_the_meta_gradient_of_jax(x64, key, monkeypatch, name):
    """By reverse mode however much is made anew, and by forward mode."""
    learner = TAKE_GRADIENTS[name]
    tasks = MINIBATCHES
    if name == "maml_plus_plus":
        tasks = mx.tasks.with_query(tasks)
    meta_params = learner.meta(jax.random.key(7))
    meta_params = jax.tree.map(lambda x: x.astype(float), meta_params)
    loop = mx.inner(learner, tasks, 5)

    def gradient(estimator):
        state = estimator.init(key, meta_params, IMAGES)
        run = jax.jit(
            lambda s: estimator.estimate(key, meta_params, s, IMAGES)[0].updates
        )
        return jax.flatten_util.ravel_pytree(run(state))[0]

    found = {
        remat: gradient(mx.bptt(loop, 2, remat=remat)) for remat in (True, "nested")
    }
    found["forward"] = gradient(mx.forward(loop, 2))
    monkeypatch.setattr(_descent, "value_and_grad", jax.value_and_grad)
    want = gradient(mx.bptt(loop, 2, remat=False))
    for how, gradients in found.items():
        np.testing.assert_allclose(gradients, want, rtol=1e-9, atol=1e-13, err_msg=how)


def test_checkpoints_within_the_loss_keep_their_effect():
    """Blocks that are made anew in the loss are not stored by the derivative of its gradient."""

    def temporary_memory(value_and_grad):
        def loss(weights, x):
            block = jax.checkpoint(lambda h, w: (h + jnp.tanh(h @ w), None))
            return jnp.mean(jax.lax.scan(block, x, weights)[0] ** 2)

        def after_two_steps(weights, x):
            def step(weights, _):
                _, grads = value_and_grad(loss)(weights, x)
                return weights - 0.1 * grads, None

            return jax.lax.scan(jax.checkpoint(step), weights, length=2)[0].sum()

        arguments = jnp.zeros((16, 32, 32)), jnp.zeros((512, 32))
        compiled = jax.jit(jax.grad(after_two_steps)).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_memory(mx.value_and_grad) < 0.6 * temporary_memory(
        jax.value_and_grad
    )


def test_small_gradients_are_kept_together():
    """By dtype; what is large, or no floating number, stays as it is."""
    tree = {
        "a": jnp.arange(6.0).reshape(2, 3),
        "half": jnp.ones(3, jnp.bfloat16),
        "large": jnp.zeros((100, 100)),
        "count": jnp.int32(3),
        "b": jnp.float32(7),
        "none": jnp.zeros((0, 2)),
    }
    pack, unpack = _trees.packing(tree)
    packed = pack(tree)
    shapes = sorted((str(x.dtype), x.shape) for x in packed)
    assert shapes == [
        ("bfloat16", (3,)),
        ("float32", (7,)),
        ("float32", (100, 100)),
        ("int32", ()),
    ]
    same = jax.tree.map(lambda x, y: bool((x == y).all()), unpack(packed), tree)
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(unpack(packed)) == jax.tree.structure(tree)
    assert [x.dtype for x in jax.tree.leaves(unpack(packed))] == [
        x.dtype for x in jax.tree.leaves(tree)
    ]
