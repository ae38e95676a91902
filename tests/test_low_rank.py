"""Low-rank perturbations: their moments, their bias and variance, and what members share."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES, MINIBATCHES, MLP

import metajax as mx

ESTIMATORS = {
    "es_low_rank": lambda inner, _: mx.es(inner, 3, 1e-3, mx.low_rank()),
    "pes_low_rank": lambda inner, _: mx.pes(
        inner, 3, 1e-3, 2, perturbation=mx.low_rank()
    ),
}
NUM = 200_000
STD = 0.1


def matrices(rank, shape, num=NUM):
    """The noise ``[num, m, n]`` of a matrix."""
    perturbation = mx.low_rank(rank)
    zero = jnp.zeros(shape)
    noise = perturbation.sample(jax.random.key(0), zero, num)
    return np.asarray(
        jax.vmap(lambda e: perturbation.move(zero, e, jnp.ones(())))(noise)
    )


def pairings(shape):
    """``d_ik d_jl``, the covariance of independent entries, ``[mn, mn]``."""
    return np.eye(np.prod(shape))


def fourth_moments(shape, rank):
    """Of a Gaussian, and 1 / rank times those where rows are paired one way, columns another."""
    m, n = shape
    rows = np.repeat(np.arange(m), n)
    columns = np.tile(np.arange(n), m)

    def paired(labels):
        same = np.eye(labels.max() + 1)[labels] @ np.eye(labels.max() + 1)[labels].T
        return [
            np.einsum("ab,cd->abcd", same, same),
            np.einsum("ac,bd->abcd", same, same),
            np.einsum("ad,bc->abcd", same, same),
        ]

    by_rows, by_columns = paired(rows), paired(columns)
    alike = sum(by_rows[i] * by_columns[i] for i in range(3))
    crossed = sum(
        by_rows[i] * by_columns[j] for i in range(3) for j in range(3) if i != j
    )
    return alike + crossed / rank


@pytest.mark.parametrize("rank", [1, 2])
def test_moments(rank):
    shape = (5, 4)  # the smallest that factors of rank 2 make smaller
    flat = matrices(rank, shape).reshape(NUM, -1)
    error = 5 / NUM**0.5
    np.testing.assert_allclose(flat.mean(0), 0, atol=error)
    covariance = flat.T @ flat / NUM
    np.testing.assert_allclose(covariance, pairings(shape), atol=3 * error)
    few = flat[:, [0, 1, 4, 5]]  # two rows and two columns
    found = np.einsum("na,nb,nc,nd->abcd", few, few, few, few, optimize=True) / NUM
    want = fourth_moments((2, 2), rank)
    np.testing.assert_allclose(found, want, atol=12 * error * want.max())


def episode_of(meta_loss):
    """An inner loop of one step, which is judged by a function of the meta-parameters."""
    learner = mx.Learner(
        init=lambda key, m, task: (),
        step=lambda key, m, state, batch: (state, meta_loss(m), {}),
        test=lambda key, m, state, batch: (meta_loss(m), {}),
    )
    nothing = mx.Tasks(lambda key, data: (), *[lambda key, data, task: ()] * 2)
    return mx.inner(learner, nothing, 1)


def updates(meta_loss, rank, meta_params, num):
    """Independent estimates, of one pair each, ``[num, ...]``; without a rank by full noise."""
    perturbation = mx.low_rank(rank) if rank else mx.gaussian()
    estimator = mx.es(episode_of(meta_loss), 1, STD, perturbation)

    def one(key):
        return estimator.estimate(key, meta_params, (), ())[0].updates

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num)))


def deviation(found, want):
    """Of the mean over the leading axis, in standard errors."""
    return np.abs(found.mean(0) - want) / (found.std(0) / len(found) ** 0.5)


@pytest.mark.parametrize(
    ("shape", "rank"), [((4, 3), 1), ((6, 5), 1), ((6, 5), 2), ((6, 5), None)]
)
def test_a_linear_loss_has_its_gradient_and_the_variance_that_was_derived(shape, rank):
    slope = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = updates(lambda w: jnp.sum(slope * w), rank, jnp.zeros(shape), NUM)
    assert deviation(found, slope).max() < 4

    m, n = shape
    full = m * n + 2
    factor = full + (2 * m + 2 * n + 2) / rank if rank else full
    moments = np.sum(found**2, (1, 2)) / np.sum(slope**2)
    assert deviation(moments, factor) < 4
    if rank:
        assert deviation(moments, full) > 20


@pytest.mark.parametrize("rank", [None, 1, 2, 4])
def test_a_cubic_is_biased_by_the_fourth_moments(rank):
    """All of the estimate is bias: the gradient is 0 there."""
    shape = (10, 8)  # the smallest that factors of rank 4 make smaller
    third = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)

    def cubic(w):
        x = w[:2, :2].ravel()
        return jnp.einsum("abc,a,b,c", third, x, x, x) / 6

    found = updates(cubic, rank, jnp.zeros(shape), NUM)

    def expected(rank):
        moments = fourth_moments((2, 2), rank)
        of_block = STD**2 / 6 * np.einsum("abcd,bcd->a", moments, third)
        want = np.zeros(shape)
        want[:2, :2] = of_block.reshape(2, 2)
        return want

    assert deviation(found, expected(rank or np.inf)).max() < 4.5
    if rank:
        assert deviation(found, expected(np.inf)).max() > 10


@pytest.mark.parametrize("rank", [None, 1, 2, 4])
def test_the_bias_on_a_quartic_falls_to_that_of_full_noise_as_the_rank_grows(rank):
    """Of ``tr (W'W)^2 / 4`` the third order is ``tr W'E E'E``: the moments have a closed form."""
    m, n = 10, 8
    w = np.random.default_rng(0).normal(size=(m, n)).astype(np.float32) / 10

    def quartic(w):
        return jnp.sum((w.T @ w) ** 2) / 4

    found = updates(quartic, rank, jnp.asarray(w), NUM)

    def expected(rank):
        gradient = w @ w.T @ w
        alike = m + n + 1
        crossed = m * n + m + n + 3
        return gradient + STD**2 * (alike + crossed / rank) * w

    assert deviation(found, expected(rank or np.inf)).max() < 4.5
    if rank:
        assert deviation(found, expected(np.inf)).max() > 10


@pytest.mark.slow
def test_the_sum_over_members_is_that_of_their_matrices(key):
    meta_params = {
        "w": jnp.zeros((7, 6)),
        "k": jnp.zeros((3, 3, 4, 5)),
        "b": jnp.zeros(6),
    }
    perturbation = mx.low_rank(2)
    noise = perturbation.sample(key, meta_params, 3)
    weights = jnp.array([0.5, -1.0, 2.0])
    members = jax.vmap(lambda e: perturbation.move(meta_params, e, jnp.ones(())))(noise)
    want = jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), members)
    found = perturbation.combine(weights, noise, meta_params)
    for name, x in found.items():
        np.testing.assert_allclose(x, want[name], rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(found["w"]) == 6  # of three members of rank 2
    one = perturbation.combine(
        weights[:1], jax.tree.map(lambda x: x[:1], noise), meta_params
    )
    assert np.linalg.matrix_rank(one["w"]) == 2
    assert np.linalg.matrix_rank(one["k"].reshape(36, 5)) == 2


def recurrent(size):
    """A network of slow weights that is read at each step."""

    def meta(key):
        keys = jax.random.split(key, 3)
        return {
            "inputs": jax.random.normal(keys[0], (4, size)) / 2,
            "hidden": jax.random.normal(keys[1], (size, size)) / size**0.5,
            "logits": jax.random.normal(keys[2], (3, size)) / size**0.5,
        }

    def step(key, m, state, batch):
        images = batch["image"].reshape(-1, 4)
        hidden = jnp.tanh(images @ m["inputs"] + state @ m["hidden"])
        logits = (m["logits"] @ hidden.T).T
        loss, metrics = mx.problems.cross_entropy(logits, batch)
        return hidden, loss, metrics

    def test(key, m, state, batch):
        return step(key, m, state, batch)[1:]

    def init(key, m, task):
        return jnp.zeros((5, size))

    return mx.Learner(init, step, test, meta=meta)


def estimate(perturbation, learner, num_tasks=4):
    loop = mx.inner(learner, MINIBATCHES, 4)
    estimator = mx.es(loop, num_tasks, 0.02, perturbation)
    meta_params = learner.meta(jax.random.key(1))
    state = estimator.init(jax.random.key(0), meta_params, IMAGES)
    run = jax.jit(estimator.estimate)
    return run(jax.random.key(2), meta_params, state, IMAGES)[0]


@pytest.mark.slow
def test_members_that_share_a_product_are_those_that_do_not():
    found = estimate(mx.low_rank(shared=True), recurrent(8))
    want = estimate(mx.low_rank(), recurrent(8))
    np.testing.assert_allclose(found.loss, want.loss, rtol=1e-5)
    for name, x in want.updates.items():
        np.testing.assert_allclose(found.updates[name], x, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_matrices_for_each_member():
    """That of what goes in and comes out is counted, too."""
    size = 512

    def memory(num_tasks, perturbation):
        learner = recurrent(size)
        loop = mx.inner(learner, MINIBATCHES, 4)
        estimator = mx.es(loop, num_tasks, 0.02, perturbation)
        arguments = jax.random.key(0), learner.meta(jax.random.key(1))
        state = jax.eval_shape(estimator.init, *arguments, IMAGES)
        run = jax.jit(estimator.estimate)
        found = run.lower(*arguments, state, IMAGES).compile().memory_analysis()
        return (
            found.temp_size_in_bytes
            + found.argument_size_in_bytes
            + found.output_size_in_bytes
        )

    def growth(perturbation):
        return (memory(32, perturbation) - memory(16, perturbation)) / 16

    assert growth(mx.gaussian()) > 4 * size**2
    assert growth(mx.low_rank(shared=True)) < 4 * size**2 / 5


@pytest.mark.slow
def test_learners_that_adapt_their_matrices_cannot_share_them():
    learner = mx.maml(MLP, 0.1)
    assert np.isfinite(estimate(mx.low_rank(), learner).loss)
    with pytest.raises((TypeError, ValueError), match=r"low_rank\(shared=False\)"):
        estimate(mx.low_rank(shared=True), learner)
    learner = replace(recurrent(8), init=lambda key, m, task: m)
    with pytest.raises(ValueError, match="keeps its meta-parameters in its state"):
        estimate(mx.low_rank(shared=True), learner)


def test_an_operation_that_is_no_product_says_what_to_do():
    learner = recurrent(8)

    def step(key, m, state, batch):
        new, loss, metrics = learner.step(key, m, state, batch)
        return new, loss + optax.tree.norm(m), metrics

    with pytest.raises(TypeError, match=r"low_rank\(shared=False\)"):
        estimate(mx.low_rank(shared=True), replace(learner, step=step))


def made_dense(perturbation):
    """The same noise, as the matrices that its factors stand for."""

    def sample(key, meta_params, num):
        noise = perturbation.sample(key, meta_params, num)
        zeros = jax.tree.map(jnp.zeros_like, meta_params)
        return jax.vmap(lambda e: perturbation.move(zeros, e, jnp.ones(())))(noise)

    return mx.gaussian()._replace(sample=sample)


@pytest.mark.parametrize("stagger", [False, True])
@pytest.mark.slow
def test_persistent_windows_are_weighed_by_the_sum_of_their_matrices(x64, key, stagger):
    """Over two episodes of three windows: factors side by side are the sum, and begin anew."""
    problem = mx.problems.stateless(
        lambda key, task: {"x": jax.random.normal(key, (6,))},
        lambda key, params, batch: (jnp.sum(params["x"] ** 2), {}),
    )

    def make_tx(meta_params):
        def update(updates, state, params=None):
            moved = jnp.tanh(meta_params["w"] @ updates["x"]) + meta_params["b"]
            return {"x": -0.1 * moved}, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    nothing = mx.Tasks(lambda key, data: (), *[lambda key, data, task: ()] * 2)
    loop = mx.inner(mx.l2l(make_tx, problem), nothing, 6)
    meta_params = {"w": jnp.eye(6), "b": jnp.zeros(6)}

    def estimates(perturbation):
        estimator = mx.pes(loop, 3, 0.1, 2, stagger=stagger, perturbation=perturbation)
        state = estimator.init(jax.random.key(1), meta_params, ())
        run = jax.jit(estimator.estimate)
        found = []
        for k in jax.random.split(key, 6):
            estimate, state = run(k, meta_params, state, ())
            found.append(estimate.updates)
        return found, state

    found, state = estimates(mx.low_rank(2))
    want, _ = estimates(made_dense(mx.low_rank(2)))
    assert state.noise["w"].a.shape == (3, 6, 3 * 2), "of three windows"
    for ours, dense in zip(found, want, strict=True):
        for name in ("w", "b"):
            np.testing.assert_allclose(ours[name], dense[name], rtol=1e-9, atol=1e-9)
