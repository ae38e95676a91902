"""Finding the wrong labels of MNIST: a weight for each training image, learned on clean ones.

Linear models, training labels of which a share is drawn at random, and a validation set that is
clean; the setting of data cleaning in the benchmark of Dagréou et al. 2022. Every method has its
outer rate searched alike, by short runs, and stops where it was best: both by other clean images,
which no method learns from. The penalty, the inner rate and the size of batches are the same for
all; they were chosen before, by the test error of seed 0.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import metajax as mx
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    at_most,
    claim,
)

SOURCE = "the setting of Dagréou et al. 2022, section 4, data cleaning"
SINGLE_LOOP = ("SOBA", "SABA", "AmIGO", "SOBA, whole set")
IMPLICIT = "implicit gradient, CG"
UNROLLED = "unrolled"


def load(
    seed: int, settings: Settings, corruption: float
) -> tuple[Any, dict[str, Any]]:
    """Training and validation images; images to select and to test by.

    ``clean`` are the true labels, for baselines alone.
    """
    num = settings["train"]
    num_valid = settings["valid"]
    rng = np.random.default_rng(seed)
    images = mx.data.load("mnist")
    order = rng.permutation(len(images["label"]))
    chosen = order[: num + num_valid]
    others = order[num + num_valid :][:num_valid]
    x = _flat(images["image"][chosen])
    y = images["label"][chosen].astype(np.int32)

    is_wrong = rng.random(num) < corruption
    drawn = rng.integers(0, 10, num, dtype=np.int32)
    data = {
        "x": x[:num],
        "y": np.where(is_wrong, drawn, y[:num]),
        "clean": y[:num],
        "valid": {"x": x[num:], "y": y[num:]},
    }
    select = {name: array[others] for name, array in images.items()}
    unseen = {"select": select, "test": mx.data.load("mnist", "test")}
    return data, {name: _as_batch(x) for name, x in unseen.items()}


def _as_batch(images: Any) -> Any:
    return {"x": _flat(images["image"]), "y": images["label"].astype(np.int32)}


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / np.float32(255)


def logits(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def losses(params: Any, x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)


def linear_model() -> mx.Problem:
    def init(key, task):
        return {"w": jnp.zeros((784, 10)), "b": jnp.zeros(10)}

    def loss(key, params, batch):
        return losses(params, batch["x"], batch["y"]).mean(), {}

    return mx.problems.stateless(init, loss)


def weighted(penalty: float, weights: Any, key: Any, params: Any, _: Any, batch: Any):
    """The inner objective: each image counts by the sigmoid of its weight."""
    del key
    count = jax.nn.sigmoid(weights[batch["index"]])
    mean = (count * losses(params, batch["x"], batch["y"])).mean()
    return mean + penalty * jnp.sum(params["w"] ** 2)


def tasks(batch_size: int | None) -> mx.Tasks:
    """Minibatches, or with None the whole sets."""

    def train(key, data, task):
        num = len(data["y"])
        index = jnp.arange(num)
        if batch_size is not None:
            index = jax.random.randint(key, (batch_size,), 0, num)
        return {"index": index, "x": data["x"][index], "y": data["y"][index]}

    def test(key, data, task):
        valid = data["valid"]
        if batch_size is None:
            return valid
        index = jax.random.randint(key, (batch_size,), 0, len(valid["y"]))
        return jax.tree.map(lambda x: x[index], valid)

    return mx.Tasks(lambda key, data: (), train, test)


def numbered(settings: Settings) -> tuple[mx.Batches, mx.Batches]:
    """The same images, cut into batches once and for all."""
    size = settings["batch_size"]

    def train(data, i):
        index = i * size + jnp.arange(size)
        return {"index": index, "x": data["x"][index], "y": data["y"][index]}

    def test(data, j):
        index = j * size + jnp.arange(size)
        return jax.tree.map(lambda x: x[index], data["valid"])

    return (
        mx.Batches(train, settings["train"] // size),
        mx.Batches(test, settings["valid"] // size),
    )


class Followed(NamedTuple):
    """The state of an estimator that starts from the parameters that it last came to."""

    params: Any


def from_solution(problem: mx.Problem, objective: Any, solve: Any) -> mx.Estimator:
    """The gradient of the outer loss at ``solve(params, weights, objective, batch)``.

    The solve is differentiated, however it is to be: by the implicit function theorem or through
    its steps. Whole sets.
    """
    whole = tasks(None)

    def init(key, weights, data):
        params, _ = problem.init(key, ())
        return Followed(params)

    def estimate(key, weights, state, data):
        train = whole.train(key, data, ())
        test = whole.test(key, data, ())

        def outer(weights):
            params = solve(state.params, weights, objective, train)
            loss, _ = problem.test(key, params, (), test)
            return loss, params

        (loss, params), updates = jax.value_and_grad(outer, has_aux=True)(weights)
        return mx.Estimate(updates, loss, {}), Followed(params)

    return mx.Estimator(init, estimate)


def implicit_solve(
    settings: Settings, params: Any, weights: Any, objective: Any, batch: Any
) -> Any:
    def value(params, weights, batch):
        return objective(weights, None, params, (), batch)

    descend = mx.implicit.descend(optax.sgd(settings["rate"]), settings["solver_steps"])
    cg = mx.implicit.cg(settings["cg"])
    params, _ = mx.implicit.argmin(value, descend, cg)(params, weights, batch)
    return params


def unrolled_solve(
    settings: Settings, params: Any, weights: Any, objective: Any, batch: Any
) -> Any:
    def value(params):
        return objective(weights, None, params, (), batch)

    @jax.checkpoint
    def step(params, _):
        _, gradient = mx.value_and_grad(value)(params)
        return optax.tree.add_scale(params, -settings["rate"], gradient), None

    params, _ = lax.scan(step, params, None, length=settings["solver_steps"])
    return params


def estimators(settings: Settings) -> dict[str, mx.Estimator]:
    problem = linear_model()
    objective = partial(weighted, settings["penalty"])
    rate = settings["rate"]
    common = (optax.sgd(rate), rate)
    some = tasks(settings["batch_size"])
    return {
        "SOBA": mx.soba(problem, objective, some, *common),
        "SABA": mx.saba(problem, objective, *numbered(settings), *common),
        "AmIGO": mx.amigo(problem, objective, some, *common),
        "SOBA, whole set": mx.soba(problem, objective, tasks(None), *common),
        IMPLICIT: from_solution(problem, objective, partial(implicit_solve, settings)),
        UNROLLED: from_solution(problem, objective, partial(unrolled_solve, settings)),
    }


def error_on(batch: Any, params: Any) -> float:
    """In percent."""
    wrong = logits(params, batch["x"]).argmax(-1) != batch["y"]
    return 100 * float(wrong.mean())


def searched(
    name: str, estimator: mx.Estimator, settings: Settings, data: Any, unseen: Any
) -> dict[str, np.ndarray]:
    """As `follow`, at the outer rate that was best in short runs."""
    is_stochastic = name in ("SOBA", "SABA", "AmIGO")
    rates = settings["outer_rates"]["batches" if is_stochastic else "whole"]

    def run(seconds, rate):
        chunk = settings["chunk"][name]
        trainer = mx.trainer(estimator, optax.sgd(rate), chunk=chunk)
        return follow(trainer, settings | {"seconds": seconds}, data, unseen)

    def least(rate):
        return run(settings["search_seconds"], rate)["select"].min()

    best = min(rates, key=least)
    return run(settings["seconds"], best) | {"outer_rate": np.asarray(best)}


def follow(
    trainer: mx.Trainer, settings: Settings, data: Any, unseen: Any
) -> dict[str, np.ndarray]:
    """Seconds of processor time, the compiler's apart, and the errors after them."""
    data = jax.device_put({key: data[key] for key in ("x", "y", "valid")})
    unseen = jax.device_put(unseen)

    def start():
        weights = jnp.zeros(len(data["y"]))
        return trainer.init(jax.random.key(0), weights, data)

    # Once to compile, and from the beginning again.
    jax.block_until_ready(trainer.run(start(), data, trainer.chunk))
    state = start()
    spent = 0.0
    found = {"seconds": [], "select": [], "test": []}
    while spent < settings["seconds"]:
        begin = time.process_time()
        state, _ = jax.block_until_ready(trainer.run(state, data, trainer.chunk))
        spent += time.process_time() - begin
        times = found["seconds"]
        if not times or spent > settings["seconds_between"] + times[-1]:
            times.append(spent)
            for name, batch in unseen.items():
                found[name].append(error_on(batch, state.estimator.params))
    return {name: np.asarray(values) for name, values in found.items()}


def best_so_far(found: dict[str, np.ndarray]) -> np.ndarray:
    """The test error of the iterate that was best on the images to select by, until then."""
    select = found["select"]
    is_best = select <= np.minimum.accumulate(select)
    at = np.maximum.accumulate(np.where(is_best, np.arange(len(select)), 0))
    return found["test"][at]


def baseline(settings: Settings, data: Any, labels: Any, unseen: Any) -> float:
    """The test error of a model of these labels, all of which count alike."""
    batch = {"index": np.arange(len(labels)), "x": data["x"], "y": labels}
    certain = np.full(len(labels), 30.0, np.float32)
    solver = optax.lbfgs()

    def value(params):
        return weighted(settings["penalty"], certain, None, params, (), batch)

    def step(carry, _):
        params, state = carry
        loss, gradient = optax.value_and_grad_from_state(value)(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=loss, grad=gradient, value_fn=value
        )
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def fit(params):
        carry = (params, solver.init(params))
        (params, _), _ = lax.scan(step, carry, None, length=settings["lbfgs_steps"])
        return params

    params, _ = linear_model().init(jax.random.key(0), ())
    return error_on(unseen["test"], fit(params))


def run(seed: int, settings: Settings, folder: Path) -> Result:
    result = {}
    for corruption in settings["corruptions"]:
        data, unseen = load(seed, settings, corruption)
        result[f"{corruption}: clean labels"] = np.asarray(
            baseline(settings, data, data["clean"], unseen)
        )
        result[f"{corruption}: all labels"] = np.asarray(
            baseline(settings, data, data["y"], unseen)
        )
        for name, estimator in estimators(settings).items():
            path = folder / f"{corruption} {name}.npz"
            if not path.exists():
                mx.save(path, searched(name, estimator, settings, data, unseen))
            found = dict(np.load(path))
            at = f"{corruption}, {name}"
            result[f"{at}: seconds"] = found["seconds"]
            result[f"{at}: error"] = best_so_far(found)
            result[f"{at}: outer rate"] = found["outer_rate"]
            print(f"{at}: {result[f'{at}: error'][-1]:.2f} %", flush=True)
    return result


def final(result: Result, corruption: float, name: str) -> float:
    return float(result[f"{corruption}, {name}: error"][-1])


def time_to(result: Result, corruption: float, name: str, error: float) -> float:
    """Seconds until the test error is as low as that for the first time, or infinity."""
    reached = result[f"{corruption}, {name}: error"] <= error
    seconds = result[f"{corruption}, {name}: seconds"]
    return float(seconds[reached][0]) if reached.any() else np.inf


def claims(results: Results, settings: Settings) -> list[Claim]:
    made = []
    for corruption in settings["corruptions"]:
        bound = settings["bounds"].get(str(corruption))
        for name in ("SOBA", "SABA"):
            behind = [
                final(result, corruption, name) - result[f"{corruption}: clean labels"]
                for result in results
            ]
            if bound is not None:
                text = (
                    f"{corruption:.0%} of the labels drawn at random: points of test error of "
                    f"{name} above the model of the clean labels <= {bound}"
                )
                made.append(claim(text, SOURCE, None, behind, at_most(bound)))
            gained = [
                final(result, corruption, name) / result[f"{corruption}: all labels"]
                for result in results
            ]
            text = (
                f"{corruption:.0%}: test error of {name} as a multiple of that of the model of all "
                f"labels <= 0.8"
            )
            made.append(claim(text, SOURCE, None, gained, at_most(0.8)))
            shares = []
            for result in results:
                target = final(result, corruption, IMPLICIT)
                needed = time_to(result, corruption, IMPLICIT, target)
                shares.append(time_to(result, corruption, name, target) / needed)
            text = (
                f"{corruption:.0%}: time of {name} to the final error of implicit gradients by CG, "
                f"as a share of theirs <= 0.5"
            )
            made.append(claim(text, SOURCE, None, shares, at_most(0.5)))
    return made


def picture(results: Results, settings: Settings, figure: Any) -> None:
    corruptions = settings["corruptions"]
    figure.set_size_inches(3 * len(corruptions) + 2.5, 3.6)
    axes = figure.subplots(1, len(corruptions), sharex=True, sharey=True, squeeze=False)
    axes = axes[0]
    ticks = [8, 10, 15, 20, 30, 50]
    first = results[0]
    for ax, corruption in zip(axes, corruptions, strict=True):
        for i, name in enumerate((*SINGLE_LOOP, IMPLICIT, UNROLLED)):
            ax.plot(
                first[f"{corruption}, {name}: seconds"],
                first[f"{corruption}, {name}: error"],
                color=mx.plot.COLOURS[i],
                linestyle=mx.plot.STYLES[i % len(mx.plot.STYLES)],
                linewidth=1.4,
                label=name,
            )
        for what, style in (("clean labels", "--"), ("all labels", ":")):
            error = np.mean([result[f"{corruption}: {what}"] for result in results])
            ax.axhline(error, color="0.4", linewidth=1, linestyle=style, label=what)
        ax.set(xscale="log", yscale="log", xlabel="seconds of processor time")
        ax.set_title(f"{corruption:.0%} of labels random", fontsize=10)
        ax.set_yticks(ticks, [str(x) for x in ticks])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test error, %")
    axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


_COMMON = {
    "penalty": 1e-3,
    "rate": 0.2,
    "outer_rates": {
        "batches": [30.0, 100.0, 300.0, 1000.0, 3000.0],
        "whole": [2e3, 6e3, 2e4, 6e4, 2e5, 6e5],
    },
    "batch_size": 64,
    "solver_steps": 20,
    "cg": 10,
    "bounds": {"0.5": 0.5},
}
_SMALL = {
    **_COMMON,
    "train": 20_000,
    "valid": 5_000,
    "corruptions": [0.5, 0.7, 0.9],
    "seconds": 20.0,
    "search_seconds": 5.0,
    "seconds_between": 0.2,
    "lbfgs_steps": 100,
    "chunk": {
        "SOBA": 100,
        "SABA": 100,
        "AmIGO": 20,
        "SOBA, whole set": 2,
        IMPLICIT: 1,
        UNROLLED: 1,
    },
}
_SMOKE = {
    **_SMALL,
    "train": 600,
    "valid": 200,
    "corruptions": [0.5],
    "outer_rates": {"batches": [300.0, 1000.0], "whole": [2e4, 6e4]},
    "seconds": 0.2,
    "search_seconds": 0.1,
    "seconds_between": 0.02,
    "lbfgs_steps": 10,
}
EXPERIMENT = Experiment(
    title="Finding wrong labels by single-loop bilevel optimization",
    source=SOURCE,
    settings={
        "smoke": _SMOKE,
        "small": _SMALL,
        "full": {**_SMALL, "seconds": 300.0, "search_seconds": 60.0},
    },
    run=run,
    claims=claims,
    picture=picture,
)
