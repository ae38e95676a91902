# %% [markdown]
# # Swap the estimator: one inner loop, all estimators
#
# The meta-gradient of an unrolled inner loop can be had in many ways, which differ in bias,
# variance, memory and time. `mx.compare_estimators` measures all four.

# %%
# %matplotlib inline
import jax
import optax
from evosax.algorithms import Open_ES

import metajax as mx

SAMPLES = 512  # smoke: 8
HORIZON = 40
WINDOW = 10
TASKS = 8
STD = 0.02

# %% [markdown]
# A small LSTM optimizer trains 8-dimensional quadratics for 40 steps. The point at which we measure
# is one where it has already learned a little.

# %%
optimizer = mx.optim.lstm(hidden=(4,), p=None)
learner = mx.l2l(optimizer, mx.problems.quadratic(), second_order=True)
loop = mx.inner(learner, mx.tasks.quadratics(8), HORIZON)
outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
trainer = mx.trainer(mx.bptt(loop, 32), outer)
state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)))
meta_params = mx.fit(trainer, state, num_steps=60, progress=None).state.meta_params

# %% [markdown]
# All of them at that point, those that run a whole episode in one estimate and those that go by
# windows. `mx.compare_estimators` holds them against a long average of full backpropagation.

# %%
whole_episodes = {
    "bptt": mx.bptt(loop, TASKS),
    "bptt, remat nested": mx.bptt(loop, TASKS, remat="nested"),
    "forward": mx.forward(loop, TASKS),
    "forward_gradient": mx.forward_gradient(loop, TASKS),
    "es": mx.es(loop, TASKS, STD),
    "es, low rank": mx.es(loop, TASKS, STD, mx.low_rank()),
    "guided_es": mx.guided_es(
        loop,
        TASKS,
        STD,
        surrogate=mx.bptt(loop, TASKS, WINDOW),
    ),
}
by_windows = {
    "bptt, windows": mx.bptt(loop, TASKS, WINDOW),
    "rtrl, windows": mx.rtrl(loop, TASKS, WINDOW),
    "uoro, windows": mx.uoro(loop, TASKS, WINDOW),
    "pes, windows": mx.pes(loop, TASKS, STD, WINDOW),
    "noise_reuse_es, windows": mx.noise_reuse_es(
        loop, TASKS, STD, WINDOW, stagger=False
    ),
}
found = mx.compare_estimators(
    whole_episodes | by_windows,
    loop,
    jax.random.key(2),
    meta_params,
    windows=dict.fromkeys(by_windows, HORIZON // WINDOW),
    samples=SAMPLES,
)
print(found)
mx.plot.estimators(found.diagnoses)[0].figure

# %% [markdown]
# Truncation makes backpropagation cheap in memory and *biased*. `rtrl` carries what truncation
# leaves out, exactly, and costs a pass for each meta-parameter, as forward mode does: right when
# there are few. `uoro` and `forward_gradient` stay cheap and pay in variance. Evolution strategies
# are unbiased (up to smoothing by `std`) and noisy; persistent ones keep that with windows.
#
# An implicit gradient is that of a learner, `mx.imaml`, under any of these:
# [notebook 4](04_imaml.ipynb).
#
# ## Any strategy of evosax
#
# `mx.ask_tell` takes the distribution-based strategies of evosax as they are:

# %%
strategy = Open_ES(
    population_size=8,
    solution=meta_params,
    optimizer=optax.sgd(1.0),
    std_schedule=optax.constant_schedule(STD),
)
trainer = mx.trainer(mx.ask_tell(loop, strategy, num_tasks=4), optax.adam(3e-3))
state = trainer.init(jax.random.key(4), meta_params)
result = mx.fit(trainer, state, num_steps=20, progress=None)
print(
    "loss",
    result.history["loss"][:3].mean(),
    "->",
    result.history["loss"][-3:].mean(),
)

# %% [markdown]
# ## Or several at once
#
# `mx.mix` adds estimates with weights, over loops of different shapes if need be: here quadratics
# of two sizes.

# %%
first_order = mx.l2l(optimizer, mx.problems.quadratic())
estimators = []
for size in (4, 16):
    sized_loop = mx.inner(first_order, mx.tasks.quadratics(size), HORIZON)
    estimators.append(mx.bptt(sized_loop, TASKS))
trainer = mx.trainer(mx.mix(estimators, weights=[0.5, 0.5]), optax.adam(1e-3))
state = trainer.init(jax.random.key(5), meta_params)
result = mx.fit(trainer, state, num_steps=20, progress=None)
print(sorted(result.history))
