# %% [markdown]
# # Swap the estimator: one inner loop, all estimators
#
# The meta-gradient of an unrolled inner loop can be had in many ways, which differ in bias,
# variance, memory and time. `mx.diagnose` measures all four.

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
# The exact gradient, by a long average of full backpropagation; then each estimator against it.

# %%
exact = mx.mean_gradient(
    mx.bptt(loop, 64),
    jax.random.key(2),
    meta_params,
    samples=SAMPLES,
)
whole_episodes = {
    "bptt, whole episode": mx.bptt(loop, TASKS),
    "forward mode": mx.forward(loop, TASKS),
    "es": mx.es(loop, TASKS, STD),
    "guided es": mx.guided_es(
        loop,
        TASKS,
        STD,
        surrogate=mx.bptt(loop, TASKS, WINDOW),
    ),
}
by_windows = {
    "bptt, windows": mx.bptt(loop, TASKS, WINDOW),
    "pes, windows": mx.pes(loop, TASKS, STD, WINDOW),
    "noise-reuse es, windows": mx.noise_reuse_es(
        loop, TASKS, STD, WINDOW, stagger=False
    ),
}
found = {}
for estimators, windows in [(whole_episodes, 1), (by_windows, HORIZON // WINDOW)]:
    for name, estimator in estimators.items():
        found[name] = mx.diagnose(
            estimator,
            jax.random.key(3),
            meta_params,
            reference=exact,
            inner=loop,
            samples=SAMPLES,
            windows=windows,
        )
mx.plot.estimators(found)[0].figure

# %% [markdown]
# Truncation makes backpropagation cheap in memory and *biased*. Evolution strategies are unbiased
# (up to smoothing by `std`) and noisy; persistent ones keep that with windows. Forward mode is
# exact and costs a pass for each meta-parameter: right when there are few.
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
