"""What is wrong with data is said before programs are compiled, which cannot see it."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax._rehearsal import Rehearsal

KEY = jax.random.key(0)
SIZES = [6] * 9 + [3]


def classes(sizes):
    label = np.repeat(np.arange(len(sizes)), sizes)
    image = 10 * np.eye(10, dtype=np.float32)[label]
    return mx.data.by_class({"image": image, "label": label})


GOOD, BAD = classes([6] * 10), classes(SIZES)
NET = (lambda key: jnp.ones(10), lambda w, x: x * w)
EPISODES = mx.tasks.episodes(2, 1, 5)
TOO_SMALL = "1 of 10 classes have fewer images, the smallest, class 9, 3"


def loop_of(tasks, learner=None):
    return mx.inner(learner or mx.protonet(NET, 2, 10), tasks, 1, "heldout")


LOOP = loop_of(EPISODES)


def trainer_of(estimator):
    return mx.trainer(estimator, optax.sgd(0.1))


def fit_on_other_data():
    trainer = trainer_of(mx.bptt(LOOP, 1))
    state = trainer.init(KEY, jnp.ones(10), GOOD)
    mx.fit(trainer, state, BAD, num_steps=1, progress=None)


CALLS = {
    "evaluate": lambda: mx.evaluate(LOOP, KEY, jnp.ones(10), BAD),
    "compare": lambda: mx.compare(
        {"SGD": optax.sgd}, mx.problems.mlp((10, 2)), EPISODES, KEY, BAD, steps=2
    ),
    "trainer.init": lambda: trainer_of(mx.es(LOOP, 1, 0.1)).init(
        KEY, jnp.ones(10), BAD
    ),
    "fit": fit_on_other_data,
    "mean_gradient": lambda: mx.mean_gradient(
        mx.bptt(LOOP, 1), KEY, jnp.ones(10), BAD, samples=2
    ),
    "diagnose": lambda: mx.diagnose(
        mx.bptt(LOOP, 1), KEY, jnp.ones(10), BAD, samples=2
    ),
    "one of several data sets": lambda: trainer_of(
        mx.mix({"good": mx.bptt(LOOP, 1), "bad": mx.bptt(LOOP, 1)})
    ).init(KEY, jnp.ones(10), {"good": GOOD, "bad": BAD}),
    "divided over devices": lambda: trainer_of(
        mx.bptt(mx.sharding.split(LOOP, mx.sharding.mesh(1)), 1)
    ).init(KEY, jnp.ones(10), BAD),
    "an estimator that keeps nothing": lambda: trainer_of(
        mx.types.Estimator(
            lambda key, meta_params, data: (),
            lambda key, meta_params, state, data: mx.bptt(LOOP, 1).estimate(
                key, meta_params, LOOP.init(key, meta_params, data), data
            ),
        )
    ).init(KEY, jnp.ones(10), BAD),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_class_too_small_is_an_error_before_anything_is_compiled(name):
    with pytest.raises(ValueError, match=TOO_SMALL):
        CALLS[name]()


WRAPPED = {
    "flatten": mx.tasks.flatten(EPISODES),
    "ragged": mx.tasks.ragged(EPISODES, 1),
    "permute_labels": mx.tasks.permute_labels(EPISODES, 2),
    "with_query": mx.tasks.with_query(EPISODES),
    "of your own": mx.Tasks(
        lambda key, data: EPISODES.sample(key, data["few"]),
        lambda key, data, task: EPISODES.train(key, data["few"], task),
        lambda key, data, task: EPISODES.test(key, data["few"], task),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_so_it_is_with_tasks_made_of_such(name):
    data = {"few": BAD} if name == "of your own" else BAD
    with pytest.raises(ValueError, match=TOO_SMALL):
        mx.evaluate(loop_of(WRAPPED[name]), KEY, jnp.ones(10), data)


SMALL = {
    "batch_size": 1,
    "test_size": 4,
}  # one label may not show that another is wrong
THREE = {"image": np.ones((6, 4), np.float32), "label": np.arange(6) % 3}
SORTED = mx.data.by_class(THREE | {"image": np.ones((6, 4), np.float32)})
OF_THREE_CLASSES = {
    "minibatches": (mx.tasks.minibatches(1, test_size=4), THREE),
    "classification": (mx.tasks.classification(3, **SMALL), SORTED),
    "episodes": (mx.tasks.episodes(3, 1), SORTED),
    "prototypes": (mx.tasks.prototypes(3, (4,), **SMALL), ()),
    "random_images": (
        mx.tasks.random_images((4,), num_images=4, num_classes=3, **SMALL),
        (),
    ),
    "permuted": (
        mx.tasks.permute_labels(mx.tasks.minibatches(1, test_size=4), 3),
        THREE,
    ),
    "projected": (mx.tasks.project(mx.tasks.classification(3, **SMALL), 4), SORTED),
}


@pytest.mark.parametrize("name", OF_THREE_CLASSES)
def test_a_label_that_the_network_has_no_output_for_is_an_error(name):
    tasks, data = OF_THREE_CLASSES[name]

    def loop(classes):
        learner = mx.l2l(optax.sgd, mx.problems.mlp((4, classes)))
        return mx.inner(learner, tasks, 2)

    with pytest.raises(ValueError, match=r"label must be in 0\.\.1, got \[2\]"):
        mx.evaluate(loop(2), KEY, 0.1, data)
    with pytest.raises(ValueError, match=r"label must be in 0\.\.1, got \[2\]"):
        trainer_of(mx.bptt(loop(2), 1)).init(KEY, jnp.float32(0.1), data)
    trainer_of(mx.bptt(loop(3), 1)).init(KEY, jnp.float32(0.1), data)


def test_sums_have_signs_of_two_kinds_and_labels_permute_among_so_many():
    signs = mx.tasks.permute_labels(mx.tasks.sum_sign((4,)), 3)
    learner = mx.l2l(optax.sgd, mx.problems.mlp((4, 2)))
    with pytest.raises(ValueError, match=r"got \[2\]"):
        mx.evaluate(mx.inner(learner, signs, 1), KEY, 0.1)
    few = mx.tasks.permute_labels(mx.tasks.minibatches(1), 2)
    with pytest.raises(ValueError, match=r"got \[2\]"):
        mx.evaluate(mx.inner(learner, few, 1), KEY, 0.1, THREE)


def test_a_symbol_that_the_network_does_not_know_is_an_error():
    text = {"text": np.array([0, 1, 2, 3] * 5)}
    learner = mx.l2l(optax.sgd, mx.problems.character_gru(3, 2))
    loop = mx.inner(learner, mx.tasks.text(1, 4, test_size=1), 1)
    with pytest.raises(ValueError, match=r"text must be in 0\.\.2, got \[3\]"):
        mx.evaluate(loop, KEY, 0.1, text)


@pytest.mark.parametrize(
    "start", [[0, 4, 2, 6], [0, 2, 4, 5], [1, 2, 4, 6], [0, 2, 4, 7], [[0, 6]]]
)
def test_classes_that_begin_where_none_can_are_an_error(start):
    data = SORTED | {"start": np.array(start)}
    loop = loop_of(
        mx.tasks.classification(2, **SMALL), mx.maml(mx.problems.mlp((4, 3)), 0.1)
    )
    params, _ = mx.problems.mlp((4, 3)).init(KEY, ())
    with pytest.raises(ValueError, match="must rise from 0 to the 6 examples"):
        mx.evaluate(loop, KEY, params, data)


def test_data_that_are_traced_are_let_through_and_neither_loss_nor_accuracy_looks_right():
    curves = jax.jit(
        lambda data: mx.evaluate(LOOP, KEY, jnp.ones(10), data, num_tasks=40)
    )(BAD)
    spoilt = np.isnan(curves.test_loss)
    assert 0 < spoilt.sum() < 40
    np.testing.assert_array_equal(np.isnan(curves.test_metrics["accuracy"]), spoilt)


def test_labels_may_be_changed_by_your_own_tasks_as_in_a_program():
    """Only those that arrive as they were drawn are looked at."""

    def fold(own, batch):
        label = batch["label"].at[0].set(0)
        return batch | {"label": label % 2}

    tasks = mx.tasks.augment(mx.tasks.minibatches(2), lambda key, batch: (), fold)
    loop = mx.inner(mx.l2l(optax.sgd, mx.problems.mlp((4, 2))), tasks, 1)
    assert np.isfinite(mx.evaluate(loop, KEY, 0.1, THREE, num_tasks=2).loss).all()


def test_the_same_data_are_rehearsed_once_and_not_kept():
    traces = []

    def program(x, data):
        traces.append(float(data["a"].sum()))
        return x + data["a"]

    rehearse = Rehearsal(program)
    data = {"a": np.ones(3, np.float32)}
    for _ in range(2):
        rehearse(jnp.ones(3), data=data)
        rehearse(jnp.ones(3), data=dict(data))
    assert traces == [3.0]
    rehearse(jnp.ones(3), data={"a": np.zeros(3, np.float32)})
    assert traces == [3.0, 0.0]

    rehearse(jnp.ones(3), data=data)
    kept = weakref.ref(data.pop("a"))
    gc.collect()
    assert kept() is None
