# %% [markdown]
# # Quickstart: the whole idea on one page
#
# Meta-learning has two loops. The **inner loop** is something that learns: a network trained by an
# optimizer, a recurrent network whose activations learn, a few gradient steps from a start. The
# **outer loop** changes how it learns. metajax keeps the two apart:
#
# | | what it is | made by |
# | --- | --- | --- |
# | `Tasks` | what is learned | `mx.tasks.*` |
# | `Learner` | how it is learned | `mx.l2l`, `mx.vsml`, `mx.maml`, `mx.imaml`, ... |
# | `Inner` | both joined: an episode of so many steps | `mx.inner` |
# | `Estimator` | how the episode is differentiated | `mx.bptt`, `mx.es`, `mx.pes`, ... |
# | `Trainer` | what is done with the meta-gradient | `mx.trainer` and any optax transformation |
#
# Each is a NamedTuple of pure functions. You can swap any of them without touching the others.

# %%
# %matplotlib inline
import jax
import optax

import metajax as mx

META_STEPS = 400  # smoke: 4
TASKS = 32  # smoke: 2

# %% [markdown]
# ## A learner: an optimizer that has parameters of its own
#
# `mx.optim.lstm()` is the LSTM optimizer of Andrychowicz et al. (2016). One small network looks at
# each coordinate of a gradient and says how to change that coordinate. Here it trains a perceptron
# on small images of digits, which come with the package.

# %%
images = mx.data.load("digits", "train")
unseen = mx.data.load("digits", "test")
optimizer = mx.optim.lstm()
problem = mx.problems.mlp((64, 8, 10))
tasks = mx.tasks.minibatches(batch_size=64)

learner = mx.l2l(optimizer, problem)
loop = mx.inner(learner, tasks, horizon=50)

# %% [markdown]
# Before any meta-training the optimizer is a random function, and the loss goes nowhere:

# %%
start = learner.meta(jax.random.key(0))
before = mx.evaluate(
    loop,
    jax.random.key(1),
    start,
    unseen,
    num_tasks=TASKS,
)
print("loss after 50 steps:", before.loss[:, -1].mean())

# %% [markdown]
# ## An estimator and a trainer
#
# Backpropagation through windows of 25 steps gives the meta-gradient; Adam applies it.

# %%
estimator = mx.bptt(loop, num_tasks=2, truncation=25)
schedule = optax.cosine_decay_schedule(5e-3, META_STEPS)
outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
trainer = mx.trainer(estimator, outer)

state = trainer.init(jax.random.key(2), start, images)
result = mx.fit(trainer, state, images, num_steps=META_STEPS)

# %% [markdown]
# ## What was learned
#
# The result is an ordinary optax transformation. Beside it stand the usual optimizers, each with
# its learning rate searched. All train a network with *20* hidden units, from images the
# meta-training never saw.

# %%
comparison = mx.compare(
    {"learned": optimizer.tx(result.best), **mx.BASELINES},
    mx.problems.mlp((64, 20, 10)),
    tasks,
    jax.random.key(3),
    unseen,
    steps=50,
    num_tasks=TASKS,
)
print(comparison)
mx.plot.curves(comparison.loss, ylabel="training loss (nats)").figure

# %% [markdown]
# ## Swap one line
#
# The same learner, the same tasks, another estimator: persistent evolution strategies (Vicol et al.
# 2021) need no gradient of the inner loop and have no truncation bias.

# %%
trainer = mx.trainer(
    mx.pes(
        loop,
        num_tasks=8,
        std=0.01,
        truncation=25,
    ),
    optax.adam(1e-3),
)
state = trainer.init(jax.random.key(4), result.best, images)
more = mx.fit(trainer, state, images, num_steps=max(2, META_STEPS // 10))

# %% [markdown]
# Or another learner: MAML, in which what is learned is the start of a few gradient steps. The
# trainer is as before.

# %%
few = mx.data.by_class(images)
few_unseen = mx.data.by_class(unseen)
maml = mx.maml(mx.problems.mlp((64, 32, 3)), rate=0.4)
loop = mx.inner(
    maml,
    mx.tasks.episodes(ways=3, shots=1),
    horizon=3,
    meta_loss="heldout",
)
trainer = mx.trainer(mx.bptt(loop, num_tasks=8), optax.adam(3e-3))
start = maml.meta(jax.random.key(6))
state = trainer.init(jax.random.key(5), start, few)
result = mx.fit(trainer, state, few, num_steps=META_STEPS)

print("three of the ten digits apart after one image of each, unseen images:")
for name, params in {
    "from a random start": start,
    "from the learned one": result.best,
}.items():
    curves = mx.evaluate(
        loop,
        jax.random.key(7),
        params,
        few_unseen,
        num_tasks=200,
    )
    print(f"  {name}, accuracy {curves.test_metrics['accuracy'].mean():.3f}")

# %% [markdown]
# Next: [VSML](02_vsml.ipynb), [learned optimizers](03_learned_optimizers.ipynb), [implicit
# gradients](04_imaml.ipynb), [estimators](05_estimators.ipynb), [parts of your
# own](06_your_own.ipynb), [several devices](07_scaling.ipynb).
