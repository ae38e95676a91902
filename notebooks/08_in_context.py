# %% [markdown]
# # Four ways to learn in activations
#
# A network whose parameters stay as they are can still learn: from the examples it has seen, in
# what it remembers of them. Four such learners on one task distribution, behind one protocol:
#
# | learner | its memory | and with the stream | all weights are |
# | --- | --- | --- | --- |
# | `meta_rnn` | the state of an LSTM | stays as it is | its own |
# | `vsml` | the states of a grid of LSTMs, a cell for each input and class | stays as it is | shared by all cells |
# | `delta_rule` | matrices that each example rewrites a little | stays as it is | its own |
# | `gpicl` | keys and values of all examples so far | grows, up to its context | its own |
#
# The meta RNN is Hochreiter et al. 2001, VSML Kirsch & Schmidhuber 2021, the delta rule Schlag et
# al. 2021 and Yang et al. 2024, GPICL Kirsch et al. 2022.

# %%
# %matplotlib inline
import jax
import numpy as np
import optax

import metajax as mx

NUM_CLASSES = 3
NUM_INPUTS = 16
LENGTH = 30  # smoke: 4
META_STEPS = 1000  # smoke: 2
RUNS = 256  # smoke: 2

# %% [markdown]
# ## Tasks that cannot be memorised
#
# Each task shows digits of three kinds through a random projection of its own, and means something
# else by its labels. Neither image nor label has ever been seen before: whoever is better than
# chance has learned it from this very stream.

# %%
digits = mx.data.load("digits")
image = digits["image"]
digits["image"] = (image - image.mean()) / image.std()
digits = mx.data.by_class(digits)


def streams(batch_size):
    digits_of_three_kinds = mx.tasks.classification(NUM_CLASSES, batch_size)
    projected = mx.tasks.project(digits_of_three_kinds, NUM_INPUTS)
    return mx.tasks.unit_spread(projected)


# %% [markdown]
# ## Meta-training
#
# The recurrent two take their stream example by example. The transformer and the layers of fast
# weights take it as one batch, in parallel, and it comes to the same as example by example: so they
# have a horizon of one step.

# %%
sizes = (NUM_INPUTS, NUM_CLASSES)
cell = mx.cells.lstm(ticks=1)
learners = {
    "meta RNN": mx.meta_rnn(*sizes, hidden=64),
    "VSML": mx.vsml(sizes, cell, backward_pass=True),
    "delta rule": mx.delta_rule(*sizes, width=32, depth=1),
    "GPICL": mx.gpicl(*sizes, context=LENGTH),
}
rates = {"meta RNN": 1e-3, "VSML": 3e-3, "delta rule": 3e-3, "GPICL": 1e-3}
whole_streams = ("delta rule", "GPICL")


def meta_train(name):
    learner = learners[name]
    piece = LENGTH if name in whole_streams else 1
    loop = mx.inner(learner, streams(piece), horizon=LENGTH // piece)
    outer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(rates[name]),
    )
    trainer = mx.trainer(mx.bptt(loop, num_tasks=16), outer)
    start = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), digits)
    return mx.fit(trainer, start, digits, num_steps=META_STEPS, progress=None)


results = {name: meta_train(name) for name in learners}


# %% [markdown]
# A guess costs `ln 3 = 1.10`. VSML and GPICL stay there for a while, as if there were nothing to
# learn, before they find out how to learn; the meta RNN for all of these meta-steps. The delta rule
# starts off with a rule that learns.


# %%
def smooth(losses):
    return np.asarray(losses).reshape(-1, max(1, META_STEPS // 50)).mean(1)


losses = {name: smooth(result.history["loss"]) for name, result in results.items()}
mx.plot.curves(losses, xlabel="meta-steps / 20", ylabel="loss (nats)", log=False).figure

# %% [markdown]
# ## What they learn from a stream
#
# Tasks that none of them has met, one example at a time, beside a linear network under SGD at the
# best of several rates on these very streams. At the first example everybody guesses.


# %%
def accuracy(learner, meta_params):
    loop = mx.inner(learner, streams(1), horizon=LENGTH)
    curves = mx.evaluate(
        loop,
        jax.random.key(2),
        meta_params,
        digits,
        num_tasks=RUNS,
    )
    right = np.asarray(curves.metrics["accuracy"])
    return right.cumsum(1) / np.arange(1, LENGTH + 1)


def last(accuracies):
    return accuracies[:, -1].mean()


shown = {name: accuracy(learners[name], results[name].best) for name in learners}
online = mx.l2l(optax.sgd, mx.problems.mlp(sizes))
every_rate = [accuracy(online, rate) for rate in (0.01, 0.03, 0.1, 0.3)]
shown["SGD"] = max(every_rate, key=last)
ax = mx.plot.curves(shown, xlabel="examples seen", ylabel="accuracy so far", log=False)
ax.figure

# %%
for name, accuracies in shown.items():
    print(f"{name:10}  {last(accuracies):.3f}")

# %% [markdown]
# ## What they cost
#
# Numbers that are learned, and numbers that are remembered after a stream:

# %%
for name, learner in learners.items():
    meta_params = jax.eval_shape(learner.meta, jax.random.key(0))
    state = jax.eval_shape(learner.init, jax.random.key(0), meta_params, ())
    learned, remembered = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (meta_params, state)
    )
    print(f"{name:10}  {learned:7,} learned  {remembered:7,} remembered")

# %% [markdown]
# ## Elsewhere
#
# VSML's parameters know nothing of sizes, so they go on to other images and other numbers of
# classes as they are. The other three are for the inputs and classes they were made for; projections
# bring other images to that size. `python -m benchmarks reproduce gpicl-generalisation` has the
# comparison on MNIST and Fashion-MNIST, after 100 and 1,000 examples, and the transition from
# memorising to learning as the number of tasks grows.
