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
# Three functions: draw a task, draw a training batch, draw a test batch. `data` is whatever you hand to `fit`; here
# there is none.


# %%
def lines(noise: float) -> mx.Tasks:
    """Regression of straight lines from noisy points."""

    def sample(key, data):
        slope, offset = jax.random.normal(key, (2,))
        return {"slope": slope, "offset": offset}

    def draw(key, task, size):
        k_x, k_noise = jax.random.split(key)
        x = jax.random.uniform(k_x, (size,), minval=-1.0)
        return {
            "x": x,
            "y": task["slope"] * x + task["offset"] + noise * jax.random.normal(k_noise, (size,)),
        }

    return mx.Tasks(
        sample,
        train=lambda key, data, task: draw(key, task, 4),
        test=lambda key, data, task: draw(key, task, 64),
    )


# %% [markdown]
# ## A learner
#
# What it knows of a task (its state), how it starts, and a step: predict, be told, change. Here least squares that
# forgets: the precision matrix decays by a factor. Both the prior and the factor are meta-parameters.


# %%
class Forgetful(NamedTuple):
    precision: jax.Array  # [2, 2]
    information: jax.Array  # [2]


def features(x):
    return jnp.stack([x, jnp.ones_like(x)], -1)


def forgetful() -> mx.Learner:
    def weights(state):
        return jnp.linalg.solve(state.precision, state.information)

    def error(state, batch):
        return jnp.mean((features(batch["x"]) @ weights(state) - batch["y"]) ** 2)

    def init(key, meta_params, task):
        return Forgetful(jnp.exp(meta_params["prior"]) * jnp.eye(2), jnp.zeros(2))

    def step(key, meta_params, state, batch):
        keep, a = jax.nn.sigmoid(meta_params["keep"]), features(batch["x"])
        new = Forgetful(
            keep * state.precision + a.T @ a, keep * state.information + a.T @ batch["y"]
        )
        return new, error(state, batch), {}

    return mx.Learner(init, step, loss=lambda key, meta_params, state, batch: error(state, batch))


loop = mx.inner(forgetful(), lines(noise=0.5), horizon=20)
trainer = mx.trainer(mx.bptt(loop, num_tasks=32), optax.adam(1e-1))
state = trainer.init(jax.random.key(0), {"prior": jnp.zeros(()), "keep": jnp.zeros(())})
result = mx.fit(trainer, state, num_steps=META_STEPS, progress=False)
learned = result.best
print(
    f"prior precision {jnp.exp(learned['prior']):.2f} (noise variance over that of the lines: 0.25)"
)
print(
    f"kept from one step to the next: {jax.nn.sigmoid(learned['keep']):.3f} (lines do not change: 1 is best)"
)

# %% [markdown]
# Meta-training found what statistics would have said.
#
# ## An optimizer
#
# A pair of `init(key)` and `tx(meta_params)`; any optax transformation can be made learnable. Here: how much of
# gradient descent and how much of its sign.


# %%
def blend() -> mx.LearnedOptimizer:
    def tx(meta_params):
        def update(grads, state, params=None):
            plain, sign = jnp.exp(meta_params)
            return jax.tree.map(lambda g: -plain * g - sign * jnp.sign(g), grads), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    return mx.LearnedOptimizer(init=lambda key: jnp.array([-3.0, -3.0]), tx=tx)


opt = blend()
learning = mx.inner(mx.l2l(opt, mx.problems.quadratic()), mx.tasks.quadratics(5), horizon=20)
trainer = mx.trainer(mx.bptt(learning, num_tasks=32), optax.adam(1e-2))
result = mx.fit(
    trainer,
    trainer.init(jax.random.key(1), opt.init(jax.random.key(2))),
    num_steps=META_STEPS,
    progress=False,
)
print("step along the gradient and along its sign:", jnp.exp(result.best))

# %% [markdown]
# ## An estimator
#
# Two functions: `init` and `estimate`, which returns a gradient like the meta-parameters, the loss and metrics. Here
# two-sided finite differences along every coordinate.


# %%
def finite_differences(inner: mx.Inner, num_tasks: int, h: float = 1e-2) -> mx.Estimator:
    def estimate(key, meta_params, state, data):
        flat, unravel = ravel_pytree(meta_params)
        keys = jax.random.split(key, num_tasks)

        def loss(flat):
            def episode(key):
                start = inner.init(key, unravel(flat), data)
                return mx.unroll(inner, unravel(flat), start, data, inner.horizon)[1]

            return jax.vmap(episode)(keys).mean()  # the same tasks for every point

        basis = jnp.eye(len(flat))
        slopes = jax.vmap(lambda e: (loss(flat + h * e) - loss(flat - h * e)) / (2 * h))(basis)
        return mx.Estimate(unravel(slopes), loss(flat), {}), state

    return mx.Estimator(init=lambda key, meta_params, data: (), estimate=estimate)


mine, exact = finite_differences(loop, 16), mx.bptt(loop, 16)
reference = mx.mean_gradient(exact, jax.random.key(3), learned, samples=512)
diagnosis = mx.diagnose(mine, jax.random.key(4), learned, reference=reference, samples=512)
print(f"bias {diagnosis.bias:.2f} ± {diagnosis.bias_error:.2f}, cosine {diagnosis.cosine:.2f}")

# %% [markdown]
# It works in `mx.trainer` as any other.
