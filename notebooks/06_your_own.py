# %% [markdown]
# # Your own learner, tasks, optimizer and estimator
#
# Everything is a NamedTuple of functions. To add one, write the functions.

# %%
# %matplotlib inline
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import metajax as mx

META_STEPS = 300  # smoke: 3

# %% [markdown]
# ## Tasks
#
# Three functions: draw a task, draw a training batch, draw a test batch. `data` is whatever you
# hand to `fit`; here there is none.


# %%
def lines(noise: float) -> mx.Tasks:
    """Regression of straight lines from noisy points."""

    def sample(key, data):
        slope, offset = jax.random.normal(key, (2,))
        return {"slope": slope, "offset": offset}

    def draw(key, task, size):
        k_x, k_noise = jax.random.split(key)
        x = jax.random.uniform(k_x, (size,), minval=-1.0)
        line = task["slope"] * x + task["offset"]
        return {"x": x, "y": line + noise * jax.random.normal(k_noise, (size,))}

    def train(key, data, task):
        return draw(key, task, 4)

    def test(key, data, task):
        return draw(key, task, 64)

    return mx.Tasks(sample, train, test)


# %% [markdown]
# ## A learner
#
# Five functions. `meta` says where meta-training begins, `init` what is known of a task before its
# first batch (the state). A `step` predicts a batch, sees the answers and changes the state; `test`
# evaluates and `predict` predicts, and neither changes it. Here is least squares that forgets: the
# precision matrix decays by a factor. Both the prior and the factor are meta-parameters.


# %%
class Forgetful(NamedTuple):
    precision: jax.Array  # [2, 2]
    information: jax.Array  # [2]


def features(x):
    return jnp.stack([x, jnp.ones_like(x)], -1)


def forgetful() -> mx.Learner:
    def meta(key):
        return {"prior": jnp.zeros(()), "keep": jnp.zeros(())}

    def init(key, meta_params, task):
        return Forgetful(jnp.exp(meta_params["prior"]) * jnp.eye(2), jnp.zeros(2))

    def step(key, meta_params, state, batch):
        loss, metrics = test(key, meta_params, state, batch)
        keep = jax.nn.sigmoid(meta_params["keep"])
        a = features(batch["x"])
        precision = keep * state.precision + a.T @ a
        information = keep * state.information + a.T @ batch["y"]
        return Forgetful(precision, information), loss, metrics

    def test(key, meta_params, state, batch):
        error = predict(key, meta_params, state, batch["x"]) - batch["y"]
        return jnp.mean(error**2), {}

    def predict(key, meta_params, state, inputs):
        weights = jnp.linalg.solve(state.precision, state.information)
        return features(inputs) @ weights

    return mx.Learner(init, step, test, predict, meta)


learner = forgetful()
loop = mx.inner(learner, lines(noise=0.5), horizon=20)
trainer = mx.trainer(mx.bptt(loop, num_tasks=32), optax.adam(1e-1))
state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)))
result = mx.fit(trainer, state, num_steps=META_STEPS, progress=None)
learned = result.best
prior = jnp.exp(learned["prior"])
keep = jax.nn.sigmoid(learned["keep"])
print(f"prior precision {prior:.2f} (noise variance over that of the lines: 0.25)")
print(f"kept from one step to the next: {keep:.3f} (lines do not change: 1 is best)")

# %% [markdown]
# Meta-training found what statistics would have said.
#
# ## An optimizer
#
# A pair of `init(key)` and `tx(meta_params)`; any optax transformation can be made learnable. Here:
# how much of gradient descent and how much of its sign.


# %%
def blend() -> mx.LearnedOptimizer:
    def init(key):
        return jnp.array([-3.0, -3.0])

    def tx(meta_params):
        plain, sign = jnp.exp(meta_params)

        def blended(grad):
            return -plain * grad - sign * jnp.sign(grad)

        return optax.stateless(lambda grads, params: jax.tree.map(blended, grads))

    return mx.LearnedOptimizer(init, tx)


descent = mx.l2l(blend(), mx.problems.quadratic())
descending = mx.inner(descent, mx.tasks.quadratics(5), horizon=20)
trainer = mx.trainer(mx.bptt(descending, num_tasks=32), optax.adam(1e-2))
state = trainer.init(jax.random.key(1), descent.meta(jax.random.key(2)))
result = mx.fit(trainer, state, num_steps=META_STEPS, progress=None)
print("step along the gradient and along its sign:", jnp.exp(result.best))

# %% [markdown]
# ## An estimator
#
# Two functions: `init` and `estimate`, which returns a gradient like the meta-parameters, the loss
# and metrics. Here two-sided finite differences along every coordinate.


# %%
def finite_differences(
    inner: mx.Inner, num_tasks: int, h: float = 1e-2
) -> mx.Estimator:
    def estimate(key, meta_params, state, data):
        flat, unravel = ravel_pytree(meta_params)
        keys = jax.random.split(key, num_tasks)

        def mean_loss(flat):
            def meta_loss(key):
                start = inner.init(key, unravel(flat), data)
                _, loss, _ = mx.unroll(
                    inner,
                    unravel(flat),
                    start,
                    data,
                    inner.horizon,
                )
                return loss

            return jax.vmap(meta_loss)(keys).mean()  # the same tasks for every point

        def slope(direction):
            above = mean_loss(flat + h * direction)
            below = mean_loss(flat - h * direction)
            return (above - below) / (2 * h)

        slopes = jax.vmap(slope)(jnp.eye(len(flat)))
        return mx.Estimate(unravel(slopes), mean_loss(flat), {}), state

    return mx.Estimator(init=lambda key, meta_params, data: (), estimate=estimate)


mine = finite_differences(loop, 16)
exact = mx.bptt(loop, 16)
reference = mx.mean_gradient(exact, jax.random.key(3), learned, samples=512)
diagnosis = mx.diagnose(
    mine,
    jax.random.key(4),
    learned,
    reference=reference,
    samples=512,
)
print(
    f"bias {diagnosis.bias:.2f} ± {diagnosis.bias_error:.2f}, cosine {diagnosis.cosine:.2f}"
)

# %% [markdown]
# It works in `mx.trainer` as any other.
