# %% [markdown]
# # VSML: watch a grid of LSTMs learn with no gradient
#
# In a network of Variable Shared Meta Learning (Kirsch & Schmidhuber 2021) each weight is replaced
# by a tiny LSTM. All of them share one set of parameters, a few thousand numbers. They pass
# messages: forward along the columns, an error backward along the rows. The network predicts, is
# told its error, and predicts better: its forward dynamics *are* a learning algorithm, and
# meta-training found it.
#
# The parameters know nothing about the number and the order of inputs and outputs. So what was
# meta-trained on one kind of images learns on others, with as many layers as in meta-training.

# %%
# %matplotlib inline
import jax
import numpy as np
import optax

import metajax as mx

STEPS = 300  # smoke: 8
RUNS = 16  # smoke: 2

# %% [markdown]
# ## A learning algorithm from the package
#
# `vsml-mnist` was meta-trained on projections of MNIST. Here it meets small digits (8 x 8 pixels,
# scanned by others), which it has never seen, one at a time.

# %%
print(mx.pretrained.card("vsml-mnist")[:700])

# %%
make_network = mx.pretrained.load("vsml-mnist")
net = make_network(64, 10)
meta_params = net.meta(jax.random.key(0))
print("meta-parameters:", sum(x.size for x in jax.tree.leaves(meta_params)))

digits = mx.data.load("digits")
image = digits["image"]
digits["image"] = (image - image.mean()) / image.std()
digits = mx.data.by_class(digits)

# One example a step, labels permuted at random in each task.
tasks = mx.tasks.classification(num_classes=10)
loop = mx.inner(net, tasks, horizon=STEPS)
vsml = mx.evaluate(
    loop,
    jax.random.key(1),
    meta_params,
    digits,
    num_tasks=RUNS,
)

# %% [markdown]
# ## Beside gradient descent
#
# The same stream of examples, learned online by SGD and Adam on a linear network, each at the best
# of several rates *on these very streams*.


# %%
def accuracy(curves):
    """Mean accuracy so far."""
    right = np.asarray(curves.metrics["accuracy"])
    return right.cumsum(1) / np.arange(1, right.shape[1] + 1)


def last(accuracies):
    return accuracies[:, -1].mean()


shown = {"VSML": accuracy(vsml)}
baselines = {
    "SGD": (optax.sgd, (0.003, 0.01, 0.03)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01)),
}
for name, (tx, rates) in baselines.items():
    online = mx.inner(mx.l2l(tx, mx.problems.mlp((64, 10))), tasks, STEPS)
    every_rate = []
    for rate in rates:
        curves = mx.evaluate(
            online,
            jax.random.key(1),
            rate,
            digits,
            num_tasks=RUNS,
        )
        every_rate.append(accuracy(curves))
    shown[name] = max(every_rate, key=last)
ax = mx.plot.curves(shown, xlabel="examples seen", ylabel="accuracy so far", log=False)
ax.figure

# %% [markdown]
# ## Watch it learn
#
# One network, one stream. Each cell holds a vector; one of its features, drawn for every pixel and
# every output, before and after learning:


# %%
def shown_memory(state):
    """What the LSTMs show of their memory, ``[pixels, outputs, features]``."""
    (memory, _), *_ = state.learner.cells
    return np.tanh(memory[0, 0])


state = loop.init(jax.random.key(2), meta_params, digits)
step = jax.jit(loop.step)
before = shown_memory(state)
errors = []
for _ in range(STEPS):
    state, _ = step(meta_params, state, digits)
    errors.append(np.asarray(state.learner.feedback[0, :, 0]))
after = shown_memory(state)
feature = int(after.std(1).mean(0).argmax())  # the feature in which outputs differ most
mx.plot.state_map(before[..., feature], (8, 8)).figure

# %%
mx.plot.state_map(after[..., feature], (8, 8)).figure

# %% [markdown]
# Nobody told the cells to become detectors of digits. And these are the errors that were sent back,
# example by example; they fade as the network learns:

# %%
mx.plot.messages(np.stack(errors), name="error").figure

# %% [markdown]
# ## Meta-train your own
#
# The loss sits at `ln(classes)`, that of a guess, for a hundred meta-steps or more before anything
# happens; small, short episodes leave this plateau first. `python -m benchmarks reproduce
# vsml-from-scratch` has the whole recipe.

# %%
small = mx.vsml((16, 3), mx.cells.lstm(ticks=1), backward_pass=True)
easy = mx.tasks.unit_spread(
    mx.tasks.project(mx.tasks.classification(num_classes=3), 16)
)
short = mx.inner(small, easy, horizon=40)
outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
trainer = mx.trainer(mx.bptt(short, num_tasks=16), outer)
start = trainer.init(jax.random.key(3), small.meta(jax.random.key(4)), digits)
result = mx.fit(trainer, start, digits, num_steps=STEPS)
history = {"meta-training": result.history["loss"]}
mx.plot.curves(history, xlabel="meta-step", ylabel="loss (nats)").figure

# %% [markdown]
# ## The same thing as one large recurrent network
#
# Sharing and message passing are one view of VSML; a single RNN with a sparse, shared weight matrix
# is another (equation 6 of the paper). The tests show both to be the same to rounding. The matrix
# of a small grid:

# %%
params = mx.cells.rnn(2).init(jax.random.key(5))
matrix = mx.cells.shared_matrix(
    params["W"],
    params["C"],
    inputs=3,
    outputs=2,
)
not_zero = int((matrix != 0).sum())
print(
    f"3 x 2 cells of 2 features: {matrix.shape} with {not_zero} entries that are not zero"
)
