"""Learning in activations alone: how many tasks it takes to learn to learn, and how well it does.

The meta-training of GPICL and of the delta rule has two phases: few inputs, classes and examples,
then those of the test, from where the first has ended. Both see MNIST training images through
random projections alone.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments._training import Run, clipped_adam, divided, fitted
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    at_least,
    below,
    claim,
)

SOURCE = "Kirsch et al. 2022 (arXiv 2212.04458)"
PUBLISHED_TOKEN = "GPICL, no lag"
NEW = ("GPICL", "delta rule")
ONLINE = ("SGD, 0 hidden", "SGD, 1 hidden", "Adam, 0 hidden", "Adam, 1 hidden")
MakeLearner = Callable[[int, int], mx.Learner]


def makers(settings: Settings) -> dict[str, MakeLearner]:
    """Functions ``(num_inputs, num_classes) -> learner``."""
    net = settings["net"]
    context = settings["long"]["length"]
    return {
        "GPICL": partial(mx.gpicl, context=context, **net),
        PUBLISHED_TOKEN: partial(mx.gpicl, context=context, lag=False, **net),
        "delta rule": partial(mx.delta_rule, **net),
        "Meta RNN": partial(mx.meta_rnn, hidden=settings["hidden"], ticks=1),
    }


def streams(phase: dict[str, Any], number: int | None = None) -> mx.Tasks:
    """Whole streams as batches; of endless tasks, or of so many."""
    classes = mx.tasks.classification(phase["classes"], batch_size=phase["length"])
    tasks = mx.tasks.unit_spread(mx.tasks.project(classes, phase["dims"]))
    return tasks if number is None else mx.tasks.finite(tasks, number)


def train(
    learner: mx.Learner,
    tasks: mx.Tasks,
    seed: int,
    meta_params: Any,
    data: Any,
    *,
    rate: optax.ScalarOrSchedule,
    run: Run,
) -> tuple[Any, np.ndarray]:
    """The meta-parameters at the end, and the loss of each meta-step."""
    loop = divided(mx.inner(learner, tasks, horizon=1), run.episodes)
    result = fitted(
        mx.bptt(loop, run.episodes),
        clipped_adam(rate),
        jax.random.key(seed + 60),
        meta_params,
        data,
        run,
    )
    return mx.sharding.gather(result.best), result.history["loss"]


def train_short(
    name: str,
    seed: int,
    settings: Settings,
    data: Any,
    folder: Path,
    number: int | None = None,
) -> tuple[Any, np.ndarray]:
    """The first phase."""
    phase = settings["short"]
    learner = makers(settings)[name](phase["dims"], phase["classes"])
    place = "endless" if number is None else str(number)
    steps = phase["steps"][name]
    return train(
        learner,
        streams(phase, number),
        seed,
        learner.meta(jax.random.key(seed + 70)),
        data,
        rate=settings["rates"][name],
        run=Run(folder / f"{name}, {place}", steps, episodes=phase["streams"]),
    )


def train_long(
    name: str,
    seed: int,
    settings: Settings,
    data: Any,
    folder: Path,
    before: dict[str, Any] | None,
) -> Any:
    """The second phase, at a rate that comes to rest.

    ``before`` are meta-parameters of the first, if there were any: `enlarged`.
    """
    phase = settings["long"]
    learner = makers(settings)[name](phase["dims"], phase["classes"])
    meta_params = learner.meta(jax.random.key(seed + 71))
    if before is not None:
        meta_params = enlarged(before, meta_params, jax.random.key(seed + 72))
    steps = phase["steps"][name]
    rate = optax.cosine_decay_schedule(settings["rates"][name], steps, alpha=0.05)
    meta_params, _ = train(
        learner,
        streams(phase),
        seed + 1,
        meta_params,
        data,
        rate=rate,
        run=Run(folder / f"{name}, long", steps, episodes=phase["streams"]),
    )
    return meta_params


def enlarged(before: Any, fresh: Any, key: jax.Array) -> Any:
    """The meta-parameters ``before`` as those of a learner of more inputs and classes.

    It sees its images through a projection, as in the first phase all images were seen: so it knows
    already what to do with them. Of further classes it knows what is ``fresh``.
    """
    old_images, old_labels, bias = _token_maps(before)
    images, labels, _ = _token_maps(fresh)
    lags = 2 if "token" in before else 1
    sizes = [w.shape[1] // lags for w in (old_images, images)]
    projection = jax.random.normal(key, sizes) / sizes[1] ** 0.5
    seen = old_images.reshape(-1, lags, sizes[0]) @ projection

    num_known = old_labels.shape[1]
    maps = seen.reshape(images.shape), labels.at[:, :num_known].set(old_labels)
    out = {k: x.at[:num_known].set(before["out"][k]) for k, x in fresh["out"].items()}
    kept = {k: x for k, x in before.items() if k in ("layers", "position")}
    if "token" in before:
        return {"token": {"w": jnp.concatenate(maps, 1), "b": bias}, "out": out} | kept
    return {"image": {"w": maps[0], "b": bias}, "label": maps[1], "out": out} | kept


def _token_maps(params: Any) -> tuple[Any, Any, Any]:
    """Of images ``[width, ...]``, of labels ``[width, classes]``, and the bias ``[width]``."""
    if "image" in params:
        return params["image"]["w"], params["label"], params["image"]["b"]
    w = params["token"]["w"]
    num_classes = len(params["out"]["b"])
    return w[:, :-num_classes], w[:, -num_classes:], params["token"]["b"]


def transition(
    seed: int, settings: Settings, data: Any, folder: Path
) -> tuple[Result, dict[str, Any]]:
    """GPICL after its first phase, for each number of tasks: gains within streams, in points.

    Also what it has learned of endless tasks.
    """
    phase = settings["short"]
    one_by_one = phase | {"length": 1}
    learner = makers(settings)["GPICL"](phase["dims"], phase["classes"])

    def gain(meta_params, number):
        accuracy = _vsml.stream_accuracy(
            seed,
            learner,
            meta_params,
            data,
            tasks=streams(one_by_one, number),
            steps=phase["length"],
            runs=settings["gain_runs"],
        )
        last = max(1, phase["length"] // 10)
        return 100 * (accuracy[:, -last:].mean() - accuracy[:, 0].mean())

    found = {"seen": [], "unseen": []}
    for number in settings["numbers"]:
        meta_params, losses = train_short("GPICL", seed, settings, data, folder, number)
        found["seen"].append(gain(meta_params, number))
        found["unseen"].append(gain(meta_params, None))
        seen, unseen = found["seen"][-1], found["unseen"][-1]
        print(f"{number or 'endless'} tasks: {seen:.1f} seen, {unseen:.1f} unseen")
    results = {f"gain: {tasks}": np.array(x) for tasks, x in found.items()}
    # The last are endless.
    return results | {"GPICL: loss": smoothed(losses)}, {"GPICL": meta_params}


def run(seed: int, settings: Settings, folder: Path) -> Result:
    train_data = mx.data.by_class(
        _data.standardised(settings["train"], settings["size"])[0]
    )
    arguments = (seed, settings, train_data, folder)
    results, short = transition(*arguments)
    others = [name for name in settings["short"]["steps"] if name != "GPICL"]
    for name in others:
        short[name], losses = train_short(name, *arguments)
        results[f"{name}: loss"] = smoothed(losses)
    trained = {}
    for name in (*NEW, *settings["others"]):
        trained[name] = train_long(name, *arguments, before=short.get(name))
    return results | test(seed, settings, trained)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Means of tens of meta-steps."""
    width = min(10, len(losses))
    return losses[: len(losses) // width * width].reshape(-1, width).mean(1)


def left_plateau(result: Result, name: str, classes: int) -> int:
    """The meta-steps until the loss was below 0.95 ln C; all of them if it never was."""
    losses = np.asarray(result[f"{name}: loss"])
    is_below = losses < 0.95 * np.log(classes)
    tens = is_below.argmax() if is_below.any() else len(losses)
    return 10 * int(tens)


def test(seed: int, settings: Settings, trained: dict[str, Any]) -> Result:
    """All learners on the very same streams of test images, as they are."""
    size = settings["size"]
    phase = settings["long"]
    context = phase["length"]
    pixels = size * size
    learners = {"VSML": mx.pretrained.load("vsml-mnist")(pixels, phase["classes"])}
    for name in trained:
        learners[name] = makers(settings)[name](pixels, phase["classes"])
    meta_params = trained | {"VSML": learners["VSML"].meta(jax.random.key(0))}
    sets = {
        name: mx.data.by_class(_data.standardised(name, size)[1])
        for name in settings["test"]
    }
    images = {name: _vsml.tasks(phase["classes"]) for name in sets}
    images["Random"] = mx.tasks.random_images((pixels,), 10, phase["classes"])

    results = {}
    for where, tasks in images.items():
        data = sets.get(where, ())
        for name, learner in learners.items():
            accuracy = _vsml.stream_accuracy(
                seed,
                learner,
                meta_params[name],
                data,
                tasks=tasks,
                steps=context if name == "GPICL" else settings["steps"],
                runs=settings["runs"],
            )
            results |= reported(f"{where}, {name}", accuracy, context)
        found = _vsml.baselines(
            seed,
            data,
            stream=tasks,
            units=pixels,
            steps=settings["steps"],
            runs=settings["runs"],
        )
        for name, accuracy in found.items():
            results |= searched(f"{where}, {name}", accuracy, context)
    return results


def reported(name: str, accuracy: np.ndarray, context: int) -> Result:
    """Of accuracies ``[runs, steps]``, in percent: the curve, and means over stretches of it."""
    curve = _vsml.cumulative(accuracy).mean(0)
    each = 100 * accuracy.mean(0)
    tenth = max(1, context // 10)
    results = {
        name: curve[_vsml.points(len(curve)) - 1],
        f"{name}: within the context": curve[context - 1],
        f"{name}: end of the context": each[context - tenth : context].mean(),
    }
    print(f"{name}: {curve[context - 1]:.1f} after {context}", flush=True)
    if len(each) >= 5 * context:
        early = each[4 * context // 5 : context].mean()
        late = each[4 * context : 5 * context].mean()
        results[f"{name}: five times the context"] = late - early
    return results


def searched(name: str, accuracy: np.ndarray, context: int) -> Result:
    """Of accuracies ``[rates, runs, steps]``, the best rate at each point.

    It is chosen on the very streams that are reported: more than a user could do.
    """
    curve = _vsml.cumulative(accuracy).mean(1).max(0)
    return {
        name: curve[_vsml.points(len(curve)) - 1],
        f"{name}: within the context": curve[context - 1],
    }


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for where, lead in zip(settings["test"], (5, 2, 2), strict=False):
        found += claims_of_leads(results, settings, where, lead)
    found += claims_of_vsml(results, settings)
    found += claims_of_plateaus(results, settings)
    found += claims_of_lengths(results, settings)
    return found + claims_of_numbers(results, settings)


def claims_of_leads(
    results: Results, settings: Settings, where: str, lead: float
) -> list[Claim]:
    context = settings["long"]["length"]
    at = "within the context"
    found = []
    for name in NEW:
        ahead = []
        for result in results:
            best = max(float(result[f"{where}, {online}: {at}"]) for online in ONLINE)
            ahead.append(result[f"{where}, {name}: {at}"] - best)
        text = f"{where}: {name}, points of cumulative accuracy ahead of the best online SGD or"
        text += f" Adam after {context} examples > {lead}"
        found.append(claim(text, f"{SOURCE}, table 2", "ahead", ahead, above(lead)))
    return found


def claims_of_vsml(results: Results, settings: Settings) -> list[Claim]:
    published = {"mnist": 5.3, "fashion_mnist": 6.3}
    at = "end of the context"
    found = []
    for where in settings["test"][:2]:
        behind = []
        for result in results:
            best = max(float(result[f"{where}, {name}: {at}"]) for name in NEW)
            behind.append(result[f"{where}, VSML: {at}"] - best)
        text = f"{where}: points of VSML ahead of the better of the two, in the last tenth of the"
        text += " context < 10"
        found.append(
            claim(text, f"{SOURCE}, table 2", published.get(where), behind, below(10))
        )
    return found


def claims_of_plateaus(results: Results, settings: Settings) -> list[Claim]:
    classes = settings["short"]["classes"]

    def left(name):
        if name not in settings["short"]["steps"]:
            return []
        return [left_plateau(result, name, classes) for result in results]

    found = []
    for name, most in (("delta rule", 150), ("GPICL", 1500)):
        text = f"{name}: meta-steps until the loss is below 0.95 ln {classes} < {most}"
        found.append(claim(text, "ours", None, left(name), below(most)))
    with_lag = left("GPICL")
    longer = [
        steps / max(10, lagged)
        for steps, lagged in zip(left(PUBLISHED_TOKEN), with_lag, strict=False)
    ]
    text = f"{PUBLISHED_TOKEN}: that many, or all, as a multiple of those with the lag >= 2"
    found.append(claim(text, "ours", None, longer, at_least(2)))
    return found


def claims_of_lengths(results: Results, settings: Settings) -> list[Claim]:
    where = settings["test"][0]
    lost = [
        result[f"{where}, delta rule: five times the context"] for result in results
    ]
    text = f"{where}: delta rule, points of accuracy gained from the end of a context to five times"
    text += " its length > -2"
    found = [claim(text, "ours", None, lost, above(-2))]
    for name in NEW:
        values = [result[f"Random, {name}: end of the context"] for result in results]
        text = f"Random: accuracy (%) of {name} in the last tenth of the context > 95"
        found.append(claim(text, f"{SOURCE}, table 2", 100, values, above(95)))
    return found


def claims_of_numbers(results: Results, settings: Settings) -> list[Claim]:
    few = settings["few"]
    place = settings["numbers"].index(few)
    after_few = [result["gain: unseen"][place] for result in results]
    after_endless = [result["gain: unseen"][-1] for result in results]
    figure = f"{SOURCE}, figure 2"
    text = "GPICL: points gained within a stream of an unseen task, meta-trained on"
    first = f"{text} {few} tasks < 5"
    last = f"{text} endless tasks > 25"
    return [
        claim(first, figure, "memorises", after_few, below(5)),
        claim(last, figure, "learns to learn", after_endless, above(25)),
    ]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    where = settings["test"][:2]
    left, *axes = figure.subplots(1, 1 + len(where))
    numbers = settings["numbers"]
    for i, tasks in enumerate(("seen", "unseen")):
        gains = np.mean([result[f"gain: {tasks}"] for result in results], axis=0)
        left.plot(range(len(numbers)), gains, color=mx.plot.COLOURS[i], label=tasks)
    left.set(
        title="GPICL",
        xlabel="tasks of meta-training",
        ylabel="gain within a stream (points)",
        xticks=range(len(numbers)),
        xticklabels=["∞" if n is None else str(n) for n in numbers],
    )
    for ax, name in zip(axes, where, strict=True):
        for i, method in enumerate((*NEW, "VSML", *ONLINE, *settings["others"])):
            curve = np.mean([result[f"{name}, {method}"] for result in results], axis=0)
            steps = settings["steps"]
            if method == "GPICL":
                steps = settings["long"]["length"]
            ax.plot(
                _vsml.points(steps),
                curve,
                color=mx.plot.COLOURS[i],
                linestyle=mx.plot.STYLES[i],
                label=method,
                linewidth=2.2 if method in NEW else 1.2,
            )
        ax.set(title=name, xlabel="examples seen", xscale="log")
    axes[0].set(ylabel="cumulative accuracy (%)")
    for ax in (left, axes[0]):
        ax.legend(frameon=False, fontsize=6)
    for ax in (left, *axes):
        ax.spines[["top", "right"]].set_visible(False)


_SMOKE = {
    "train": "digits",
    "test": ["digits"],
    "size": 4,
    "net": {"width": 4, "depth": 1, "heads": 1, "head_size": 4},
    "hidden": 4,
    "numbers": [2, None],
    "few": 2,
    "others": [],
    "gain_runs": 2,
    "rates": {
        "GPICL": 1e-3,
        PUBLISHED_TOKEN: 1e-3,
        "delta rule": 3e-3,
        "Meta RNN": 1e-3,
    },
    "short": {
        "dims": 8,
        "classes": 3,
        "length": 4,
        "streams": 2,
        "steps": {"GPICL": 2},
    },
    "long": {
        "dims": 16,
        "classes": 10,
        "length": 4,
        "streams": 2,
        "steps": {"GPICL": 2, "delta rule": 2},
    },
    "steps": 20,
    "runs": 2,
}
_SMALL = {
    "train": "mnist",
    "test": ["mnist", "fashion_mnist", "digits"],
    "size": 14,
    "net": {"width": 64, "depth": 2, "heads": 4, "head_size": 16},
    "hidden": 128,
    "numbers": [1, 16, 256, 4096, None],
    "few": 16,
    "others": ["Meta RNN"],
    "gain_runs": 256,
    "rates": {
        "GPICL": 1e-3,
        PUBLISHED_TOKEN: 1e-3,
        "delta rule": 3e-3,
        "Meta RNN": 1e-3,
    },
    "short": {
        "dims": 32,
        "classes": 5,
        "length": 60,
        "streams": 16,
        "steps": {"GPICL": 1500, PUBLISHED_TOKEN: 3000, "delta rule": 500},
    },
    "long": {
        "dims": 196,
        "classes": 10,
        "length": 100,
        "streams": 16,
        "steps": {"GPICL": 2500, "delta rule": 3000, "Meta RNN": 500},
    },
    "steps": 1000,
    "runs": 32,
}
_LONG = 20_000
_FULL = {
    **_SMALL,
    "net": {"width": 256, "depth": 4, "heads": 8, "head_size": 32},
    "numbers": [2**n for n in range(6, 21, 2)] + [None],
    "few": 2**6,
    "short": {
        **_SMALL["short"],
        "streams": 128,
        "steps": {"GPICL": 10_000, PUBLISHED_TOKEN: 20_000, "delta rule": 2000},
    },
    "long": {
        **_SMALL["long"],
        "streams": 128,
        "steps": {"GPICL": _LONG, "delta rule": _LONG, "Meta RNN": _LONG},
    },
}
EXPERIMENT = Experiment(
    title="From memorising to learning to learn, by a transformer and by fast weights",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
