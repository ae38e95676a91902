"""Each mistake gets a ValueError or TypeError that names the argument and says what to do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms import Open_ES, SimpleGA
from flax import nnx

import metajax as mx

KEY = jax.random.key(0)
OPT = mx.optim.lstm(hidden=(3,))
META = OPT.init(KEY)
MLP = mx.problems.mlp((4, 2, 3))
LEARNER = mx.l2l(OPT, MLP)
TASKS = mx.tasks.minibatches(4)
DATA = {"image": np.zeros((8, 2, 2, 1), np.uint8), "label": np.zeros(8, np.int32)}
INNER = mx.inner(LEARNER, TASKS, 4)
HELDOUT = mx.inner(LEARNER, TASKS, 4, "heldout")
TRAINER = mx.trainer(mx.bptt(INNER, 2), optax.adam(1e-3))
STATE = TRAINER.init(KEY, META, DATA)
TX = OPT.tx(META)
PARAMS = {"w": jnp.ones(3)}
QUADRATIC = mx.inner(
    mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(2), 4
)
NAN = {"image": np.full((8, 2, 2, 1), np.nan, np.float32), "label": DATA["label"]}


class Indexed(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.index = jnp.arange(4)

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1)[:, self.index])


OF_INTEGERS = mx.problems.stateless(
    lambda key, task: jnp.array([3, -2]),
    lambda key, params, batch: (jnp.sum(params**2.0), {}),
)
LINE_SEARCH = mx.trainer(mx.bptt(INNER, 2), optax.lbfgs())


def step(data):
    return mx.unroll(INNER, META, INNER.init(KEY, META, DATA), data, 1)


def custom(**changes):
    """One inner step of a learner or a task distribution with a mistake in it."""
    learner = replace(LEARNER, **{k: v for k, v in changes.items() if k != "sample"})
    inner = mx.inner(learner, TASKS, 4)
    return mx.unroll(inner, META, inner.init(KEY, META, DATA), DATA, 1)


def without_predict():
    """A learner of a problem that makes no predictions."""
    bowl = mx.problems.stateless(
        init=lambda key, task: jnp.zeros(2),
        loss=lambda key, params, batch: (jnp.sum(params**2), {}),
    )
    return mx.maml(bowl, 0.1)


def evaluated(*found):
    """The evaluation of a learner whose test gives what was ``found``."""
    result = found if len(found) > 1 else found[0]
    inner = mx.inner(replace(LEARNER, test=lambda *_: result), TASKS, 1)
    return mx.evaluate(inner, KEY, META, DATA)


SOLVER = mx.implicit.descend(optax.sgd(0.1), 2)
STATELESS = without_predict().init(KEY, jnp.zeros(2), ())


def trained(step, estimator=mx.bptt, **kwargs):
    """One meta-step over a learner with that step."""
    estimator = estimator(mx.inner(replace(LEARNER, step=step), TASKS, 4), 2, **kwargs)
    trainer = mx.trainer(estimator, optax.sgd(1.0))
    return trainer.step(trainer.init(KEY, META, DATA), DATA)


CASES = {
    # inner and evaluate
    "inner: learner is a class instance": (
        lambda: mx.inner(object(), TASKS, 4),
        TypeError,
        "learner",
    ),
    "inner: tasks and learner swapped": (
        lambda: mx.inner(TASKS, LEARNER, 4),
        TypeError,
        "learner",
    ),
    "inner: horizon zero": (lambda: mx.inner(LEARNER, TASKS, 0), ValueError, "horizon"),
    "inner: horizon a float": (
        lambda: mx.inner(LEARNER, TASKS, 4.0),
        TypeError,
        "horizon",
    ),
    "inner: horizon a bool": (
        lambda: mx.inner(LEARNER, TASKS, True),
        TypeError,
        "horizon",
    ),
    "unroll: no step": (
        lambda: mx.unroll(QUADRATIC, 0.1, QUADRATIC.init(KEY, 0.1, ()), (), 0),
        ValueError,
        "length must be at least 1",
    ),
    "trainer: a name among the data": (
        lambda: TRAINER.init(KEY, META, {**DATA, "name": "digits"}),
        TypeError,
        r"data\['name'\] must be an array, got 'digits'",
    ),
    "inner: unknown meta-loss": (
        lambda: mx.inner(LEARNER, TASKS, 4, "final"),
        ValueError,
        "meta_loss",
    ),
    "inner: loss not scalar": (
        lambda: custom(step=lambda k, m, s, b: (s, jnp.ones(3), {})),
        ValueError,
        "loss returned by learner.step",
    ),
    "inner: a step without metrics": (
        lambda: custom(step=lambda k, m, s, b: (s, jnp.float32(0))),
        TypeError,
        r"learner.step must return \(state, loss, metrics\), got tuple of 2",
    ),
    "inner: a metric for each class": (
        lambda: custom(
            step=lambda k, m, s, b: (s, jnp.float32(0), {"accuracy": jnp.zeros(3)})
        ),
        ValueError,
        r"the metric 'accuracy' returned by learner.step must be a scalar, got "
        r"float32\[3\]; reduce it",
    ),
    "inner: a metric without a name": (
        lambda: evaluated(jnp.float32(0), jnp.float32(0)),
        TypeError,
        "the metrics returned by learner.test must be a dict of scalars",
    ),
    "inner: a test without metrics": (
        lambda: evaluated(jnp.float32(0)),
        TypeError,
        r"learner.test must return \(loss, metrics\), got float32\[\]",
    ),
    "inner: a test loss for each example": (
        lambda: evaluated(jnp.zeros(3), {}),
        ValueError,
        "the loss returned by learner.test must be a floating-point scalar",
    ),
    **{
        f"{name}: {what}": (
            lambda make=make, found=found: mx.evaluate(
                mx.inner(make(replace(MLP, loss=lambda *_: found)), TASKS, 1),
                KEY,
                META,
                DATA,
            ),
            error,
            message,
        )
        for name, make in {
            "l2l": lambda problem: mx.l2l(lambda _: optax.sgd(0.1), problem),
            "maml": lambda problem: mx.maml(problem, 0.1),
            "imaml": lambda problem: mx.imaml(
                problem, mx.implicit.descend(optax.sgd(0.1), 2), mx.implicit.cg(2), 1.0
            ),
        }.items()
        for what, found, error, message in (
            (
                "a loss without metrics",
                jnp.float32(0),
                TypeError,
                r"problem.loss must return \(loss, \(metrics, model_state\)\)",
            ),
            (
                "a loss with metrics alone",
                (jnp.float32(0), {}),
                TypeError,
                r"problem.loss must return \(metrics, model_state\), got dict",
            ),
            (
                "a loss for each example",
                (jnp.zeros(3), ({}, ())),
                ValueError,
                "the loss returned by problem.loss",
            ),
            (
                "a metric for each example",
                (jnp.float32(0), ({"hit": jnp.zeros(3)}, ())),
                ValueError,
                "the metric 'hit'",
            ),
        )
    },
    "inner: state changes its tree": (
        lambda: custom(step=lambda k, m, s, b: ((s, 1.0), jnp.float32(0), {})),
        ValueError,
        "state returned by learner.step",
    ),
    **{
        f"trainer: a metric called {name}": (
            lambda name=name: trained(
                lambda k, m, s, b: (s, jnp.float32(0), {name: jnp.float32(7)})
            ),
            ValueError,
            f"the metric '{name}' has the name of one that a run reports itself",
        )
        for name in ("loss", "skipped", "step", "validation")
    },
    "es: a metric called diverged": (
        lambda: trained(
            lambda k, m, s, b: (s, jnp.float32(0), {"diverged": jnp.float32(7)}),
            mx.es,
            std=0.1,
        ),
        ValueError,
        "the metric 'diverged' has the name of one that an evolution strategy reports itself",
    ),
    "es: bfloat16": (
        lambda: mx.es(QUADRATIC, 2, 0.1).init(KEY, jnp.bfloat16(0.1), ()),
        TypeError,
        "meta_params must be float32 or float64, got bfloat16",
    ),
    "evaluate: an old-style key": (
        lambda: mx.evaluate(INNER, jnp.zeros(2, jnp.uint32), META, DATA),
        TypeError,
        "key must be a typed key",
    ),
    "evaluate: a seed for a key": (
        lambda: mx.evaluate(INNER, 0, META, DATA),
        TypeError,
        "jax.random.key",
    ),
    "evaluate: several keys": (
        lambda: mx.evaluate(INNER, jax.random.split(KEY, 2), META, DATA),
        ValueError,
        "single key",
    ),
    "evaluate: no steps": (
        lambda: mx.evaluate(INNER, KEY, META, DATA, steps=0),
        ValueError,
        "steps",
    ),
    "evaluate: no tasks": (
        lambda: mx.evaluate(INNER, KEY, META, DATA, num_tasks=0),
        ValueError,
        "num_tasks",
    ),
    "evaluate: NaN in the data": (
        lambda: mx.evaluate(INNER, KEY, META, NAN),
        ValueError,
        r"data\['image'\] holds 32",
    ),
    "evaluate: NaN in the parameters": (
        lambda: mx.evaluate(QUADRATIC, KEY, float("nan")),
        ValueError,
        "meta_params holds 1 NaN",
    ),
    "evaluate: learner for inner": (
        lambda: mx.evaluate(LEARNER, KEY, META, DATA),
        TypeError,
        "inner",
    ),
    # tasks and data
    "minibatches: batch of none": (
        lambda: mx.tasks.minibatches(0),
        ValueError,
        "batch_size",
    ),
    "minibatches: data a tuple": (
        lambda: step((DATA["image"], DATA["label"])),
        TypeError,
        'a dict with "image" and "label"',
    ),
    "minibatches: data without labels": (
        lambda: step({"image": DATA["image"]}),
        TypeError,
        "label",
    ),
    "minibatches: a label too few": (
        lambda: step({"image": DATA["image"], "label": DATA["label"][:-1]}),
        ValueError,
        "one label an image",
    ),
    "minibatches: labels are floats": (
        lambda: step({"image": DATA["image"], "label": np.zeros(8)}),
        TypeError,
        "integer dtype",
    ),
    "minibatches: no data": (
        lambda: step({"image": DATA["image"][:0], "label": DATA["label"][:0]}),
        ValueError,
        "empty",
    ),
    "quadratics: size zero": (lambda: mx.tasks.quadratics(0), ValueError, "size"),
    "data: unknown set": (
        lambda: mx.data.load("imagenet"),
        ValueError,
        "one of digits, mnist",
    ),
    "data: name no string": (lambda: mx.data.load(3), TypeError, "name"),
    "data: unknown split of digits": (
        lambda: mx.data.load("digits", "valid"),
        ValueError,
        "split",
    ),
    "data: split no string": (lambda: mx.data.load("digits", 3), TypeError, "split"),
    # problems
    "mlp: one size": (lambda: mx.problems.mlp((4,)), ValueError, "sizes"),
    "mlp: a size of zero": (lambda: mx.problems.mlp((4, 0, 3)), ValueError, "sizes"),
    "mlp: activation a string": (
        lambda: mx.problems.mlp((4, 3), "relu"),
        TypeError,
        "activation",
    ),
    "mlp: images of another size": (
        lambda: step(
            {"image": np.zeros((8, 3, 3, 1), np.uint8), "label": DATA["label"]}
        ),
        ValueError,
        r"sizes\[0\] is 4",
    ),
    "classifier: logits of another shape": (
        lambda: mx.problems.classifier(lambda k: jnp.zeros(()), lambda p, x: p).test(
            KEY, jnp.zeros(()), (), DATA
        ),
        ValueError,
        "net_apply",
    ),
    "classifier: net no function": (
        lambda: mx.problems.classifier(None, None),
        TypeError,
        "net_init",
    ),
    # l2l
    "l2l: a transformation, not a function of parameters": (
        lambda: mx.l2l(optax.adam(0.1), MLP),
        TypeError,
        "optimizer must be a metajax.LearnedOptimizer or a function of the meta-parameters",
    ),
    "l2l: a function that gives a learned optimizer": (
        lambda: mx.l2l(lambda m: OPT, MLP).init(KEY, META, ()),
        TypeError,
        "of a learned optimizer give it itself",
    ),
    "l2l: the meta-parameters of a function of them": (
        lambda: mx.l2l(optax.adam, MLP).meta(KEY),
        TypeError,
        "give its optimizer as a metajax.LearnedOptimizer, or take dataclasses.replace.learner",
    ),
    "l2l: a function that gives no transformation": (
        lambda: mx.l2l(lambda m: 0.1, MLP).init(KEY, META, ()),
        TypeError,
        "GradientTransformation",
    ),
    "l2l: problem missing": (lambda: mx.l2l(OPT, None), TypeError, "problem"),
    # learners that do not know all of themselves
    "adapt: the meta-parameters of a start of one's own": (
        lambda: mx.adapt(MLP, lambda m: optax.sgd(0.1), start=lambda m: m["x"]).meta(
            KEY
        ),
        TypeError,
        "does not say how its meta-parameters begin.*replace.learner, meta=lambda key",
    ),
    "imaml: the meta-parameters of a start of one's own": (
        lambda: mx.imaml(
            MLP, SOLVER, mx.implicit.cg(2), 1.0, start=lambda m: m["x"]
        ).meta(KEY),
        TypeError,
        "does not say how its meta-parameters begin",
    ),
    "predict: a problem without": (
        lambda: without_predict().predict(KEY, jnp.zeros(2), STATELESS, ()),
        TypeError,
        "made of something that has no predict; give it one",
    ),
    "predict: what fits a cell": (
        lambda: mx.clone_backprop(mx.cells.lstm(4, slots=1), 0.1).predict(
            KEY, (), (), ()
        ),
        TypeError,
        "made of something that has no predict",
    ),
    # the LSTM optimizer
    "lstm: scale negative": (lambda: mx.optim.lstm(scale=-1.0), ValueError, "scale"),
    "lstm: p NaN": (
        lambda: mx.optim.lstm(p=float("nan")),
        ValueError,
        "p must be finite",
    ),
    "lstm: p whose exponential overflows": (
        lambda: mx.optim.lstm(p=95.0),
        ValueError,
        "p must be at most 80",
    ),
    "ntm_bfgs: p whose exponential overflows": (
        lambda: mx.optim.ntm_bfgs(p=95.0),
        ValueError,
        "p must be at most 80",
    ),
    "lstm_cell: a norm over one slot": (
        lambda: mx.cells.lstm(slots=1, layer_norm=True),
        ValueError,
        "layer_norm needs slots of at least 2",
    ),
    "lstm: hidden an int": (lambda: mx.optim.lstm(hidden=20), TypeError, "hidden"),
    "lstm: hidden empty": (lambda: mx.optim.lstm(hidden=()), ValueError, "hidden"),
    "lstm: state dtype an integer": (
        lambda: mx.optim.lstm(state_dtype=jnp.int32),
        TypeError,
        "state_dtype",
    ),
    "lstm: parameters of another tree": (
        lambda: OPT.tx({"w": 1.0}),
        ValueError,
        "meta_params",
    ),
    "lstm: parameters of another size": (
        lambda: OPT.tx(mx.optim.lstm(hidden=(4,)).init(KEY)),
        ValueError,
        "meta_params.*shape",
    ),
    "lstm: integer parameters to train": (
        lambda: TX.init({"w": jnp.ones(3, int)}),
        TypeError,
        r"params\['w'\]",
    ),
    "lstm: complex parameters to train": (
        lambda: TX.init(jnp.ones(3, complex)),
        TypeError,
        "params",
    ),
    "lstm: updates of another size": (
        lambda: TX.update({"w": jnp.ones(4)}, TX.init(PARAMS)),
        ValueError,
        "updates.*init",
    ),
    "lstm: seed for a key": (lambda: OPT.init(0), TypeError, "key"),
    # estimators
    "bptt: window does not divide": (
        lambda: mx.bptt(INNER, 2, truncation=3),
        ValueError,
        "truncation.*take 2",
    ),
    "bptt: window and held-out loss": (
        lambda: mx.bptt(HELDOUT, 2, truncation=2),
        ValueError,
        "truncation.*online",
    ),
    "bptt: no tasks": (lambda: mx.bptt(INNER, 0), ValueError, "num_tasks"),
    "bptt: learner for inner": (lambda: mx.bptt(LEARNER, 2), TypeError, "inner"),
    "ask_tell: a genetic algorithm": (
        lambda: mx.ask_tell(INNER, SimpleGA(population_size=4, solution=META), 2),
        TypeError,
        "strategy.*SimpleGA",
    ),
    "ask_tell: the class of a strategy": (
        lambda: mx.ask_tell(INNER, Open_ES, 2),
        TypeError,
        "class Open_ES",
    ),
    "ask_tell: strategy for another tree": (
        lambda: mx.ask_tell(INNER, Open_ES(4, solution=PARAMS), 2).init(
            KEY, META, DATA
        ),
        ValueError,
        "strategy",
    ),
    # training
    "trainer: inner for estimator": (
        lambda: mx.trainer(INNER, optax.adam(1e-3)),
        TypeError,
        "estimator",
    ),
    "trainer: a rate for tx": (
        lambda: mx.trainer(mx.bptt(INNER, 2), 1e-3),
        TypeError,
        "tx",
    ),
    "trainer: integer meta-parameters": (
        lambda: TRAINER.init(KEY, {"a": 1}, DATA),
        TypeError,
        r"meta_params\['a'\]",
    ),
    "trainer: NaN in the data": (
        lambda: TRAINER.init(KEY, META, NAN),
        ValueError,
        "data.*NaN",
    ),
    "trainer: estimator state for state": (
        lambda: TRAINER.step(STATE.estimator, DATA),
        TypeError,
        "state",
    ),
    "fit: no steps": (
        lambda: mx.fit(TRAINER, STATE, DATA, num_steps=0),
        ValueError,
        "num_steps",
    ),
    "trainer: chunk of none": (
        lambda: mx.trainer(mx.bptt(INNER, 2), optax.adam(1e-3), chunk=0),
        ValueError,
        "chunk",
    ),
    "fit: parameters for state": (
        lambda: mx.fit(TRAINER, META, DATA, num_steps=1),
        TypeError,
        "state",
    ),
    "fit: NaN in the data": (
        lambda: mx.fit(TRAINER, STATE, NAN, num_steps=1),
        ValueError,
        "NaN",
    ),
    # functions of the user's own
    "stateless: no key": (
        lambda: mx.problems.stateless(
            lambda key, task: jnp.zeros(2), lambda params, batch: (0.0, {})
        ),
        TypeError,
        r"loss must take \(key, params, batch\).*loss\(params, batch\)",
    ),
    "supervised: no mode": (
        lambda: mx.problems.supervised(
            lambda key: ((), ()),
            lambda w, x: x,
            mx.problems.cross_entropy,
        ),
        TypeError,
        r"apply must take \(key, params, model_state, inputs, training\)",
    ),
    "inner: tasks without data": (
        lambda: mx.inner(LEARNER, replace(TASKS, sample=lambda key: ()), 4),
        TypeError,
        r"tasks.sample must take \(key, data\)",
    ),
    "nnx: a model": (
        lambda: mx.problems.nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0))),
        TypeError,
        "make must be a function that makes the model",
    ),
    "nnx: an array that is no variable": (
        lambda: mx.problems.nnx(Indexed),
        TypeError,
        r"Indexed.index is an array .*nnx.Variable",
    ),
    "l2l: nothing to train": (
        lambda: mx.evaluate(
            mx.inner(mx.l2l(optax.sgd, OF_INTEGERS), TASKS, 2), KEY, 0.1, DATA
        ),
        TypeError,
        "none of the parameters that problem.init gives is floating-point",
    ),
    "trainer: a line search": (
        lambda: mx.fit(
            LINE_SEARCH, LINE_SEARCH.init(KEY, META, DATA), DATA, num_steps=1
        ),
        TypeError,
        "tx asks for the loss at other points",
    ),
    # what is long is not written out
    "mlp: a long list": (
        lambda: mx.problems.mlp([[1] * 10_000]),
        TypeError,
        r"^(?=.{0,300}$)sizes must be a Python int, got \[1, 1",
    ),
    "tx: a result": (
        lambda: OPT.tx(STATE),
        TypeError,
        "got a metajax.TrainState; give state.meta_params",
    ),
    "an optimizer in a chain": (
        lambda: optax.chain(optax.clip(1.0), OPT).init(PARAMS),
        TypeError,
        r"give optimizer.tx\(meta_params\)",
    ),
    "data: left out": (
        lambda: mx.evaluate(INNER, KEY, META),
        TypeError,
        "data must be a dict with .*got none",
    ),
    "data: a name": (
        lambda: mx.evaluate(INNER, KEY, META, "digits"),
        TypeError,
        r"metajax.data.load\(name\)",
    ),
    # masks
    **{
        f"mask: {name}": (
            lambda mask=mask: mx.problems.cross_entropy(
                jnp.zeros((5, 3)), {"label": jnp.zeros(5, int), "mask": mask}
            ),
            ValueError,
            r"mask must be bool\[5\], one for each example",
        )
        for name, mask in {
            "a column": np.ones((5, 1), bool),
            "weights": np.full(5, 0.5),
            "integers": np.array([2, 1, 0, 0, 0]),
            "of another length": np.ones(3, bool),
            "a scalar": np.bool_(True),
        }.items()
    },
    # comparison and files
    "compare: nothing": (
        lambda: mx.compare({}, MLP, TASKS, KEY, DATA, steps=2),
        TypeError,
        "optimizers",
    ),
    "compare: rates negative": (
        lambda: mx.compare(
            mx.BASELINES, MLP, TASKS, KEY, DATA, steps=2, search=mx.RateSearch([-1.0])
        ),
        ValueError,
        "rates",
    ),
    "compare: no rates": (
        lambda: mx.compare(
            mx.BASELINES, MLP, TASKS, KEY, DATA, steps=2, search=mx.RateSearch([])
        ),
        ValueError,
        "rates",
    ),
    "compare: a learned optimizer without its parameters": (
        lambda: mx.compare({"ours": OPT}, MLP, TASKS, KEY, DATA, steps=2),
        TypeError,
        r"optimizers\['ours'\].*tx\(meta_params\)",
    ),
    "compare: a seed for a key": (
        lambda: mx.compare(mx.BASELINES, MLP, TASKS, 0, DATA, steps=2),
        TypeError,
        "key must be a typed key",
    ),
    "save: a pickle": (
        lambda: mx.save("never.pkl", META),
        ValueError,
        "path must end in .npz or .safetensors",
    ),
    "save: NaN": (
        lambda: mx.save("never.npz", {"a": jnp.nan}),
        ValueError,
        r"tree\['a'\]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_there_are_many():
    assert len(CASES) >= 40
