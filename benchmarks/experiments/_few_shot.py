"""What the experiments on few-shot learning share: methods, training, test, claims and picture.

A setting is ``"5-way 1-shot"`` or the like; its name is in the settings and in the results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import Run, divided, meta_train
from benchmarks.reproduce import Claim, Result, Results, Settings, at_least, claim

EMBEDDING = 64  # numbers in an embedding of ProtoNet
# setting -> method -> per cent and its 95 % interval
Published = Mapping[str, Mapping[str, tuple[float, float | None]]]


class Trial(NamedTuple):
    """A method in a setting.

    Attributes:
      method: such as ``"MAML"``.
      ways: classes of a task.
      shots: examples a class to learn from.
      meta_steps: of the whole meta-training.
      num_tasks: in a meta-step.
      options: of the method, see `options_of`.
    """

    method: str
    ways: int
    shots: int
    meta_steps: int
    num_tasks: int
    options: dict[str, Any]


def run(
    seed: int,
    settings: Settings,
    folder: Path,
    load: Callable[[str], Any],
    published: Published,
) -> Result:
    """Meta-trains each method of each setting on ``load("train")``.

    The test is on the classes of ``load("test")``.
    """
    parts = ("train", "validation", "test")
    data = {part: jax.tree.map(jnp.asarray, load(part)) for part in parts}
    results = {}
    for setting, budget in settings["budgets"].items():
        ways, shots = (int(word.split("-")[0]) for word in setting.split())
        for method, (meta_steps, num_tasks) in budget.items():
            options = options_of(settings, setting, method)
            trial = Trial(method, ways, shots, meta_steps, num_tasks, options)
            name = f"{setting}, {method}"
            path = folder / name.replace(", ", "-").replace(" ", "-")
            test_loop, meta_params = meta_trained(seed, trial, settings, data, path)
            mx.save(path.with_suffix(".npz"), meta_params)

            key = jax.random.key(300)
            num_test = settings["test_tasks"]
            at_once = settings["at_once"]
            found = accuracies(
                test_loop, key, meta_params, data["test"], num_test, at_once
            )
            per_cent = 100 * found
            results[name] = per_cent.mean()
            results[f"{name}: interval"] = (
                1.96 * per_cent.std(ddof=1) / len(per_cent) ** 0.5
            )
        print(table(setting, results, published), flush=True)
    return results


def options_of(settings: Settings, setting: str, method: str) -> dict[str, Any]:
    """What a method is given in a setting: the most special of the settings counts."""
    options = settings["methods"][method]
    ways, _ = setting.split()
    for special in (ways, setting):
        methods = settings.get(f"methods, {special}", {})
        options = options | methods.get(method, {})
    return options


def meta_trained(
    seed: int,
    trial: Trial,
    settings: Settings,
    data: dict[str, Any],
    path: Path,
) -> tuple[mx.Inner, Any]:
    """The inner loop of the test, and the meta-parameters that all phases come to.

    Each phase changes some of the options and goes on from what the one before has come to.
    """
    options = trial.options
    shape = data["train"]["image"].shape[1:]
    meta_params: Any = None
    test_loop: Any = None
    for i, phase in enumerate(options.get("phases", [{"share": 1}])):
        options = options | phase
        learner = build(
            trial.method,
            trial.ways,
            shape,
            settings["net"],
            options,
        )
        training_loop, test_loop = loops(learner, trial, options)
        if meta_params is None:
            meta_params = learner.meta(jax.random.key(100 + seed))

        steps = round(options["share"] * trial.meta_steps)
        episodes = trial.num_tasks
        estimator = mx.bptt(divided(training_loop, episodes), episodes, remat=False)
        meta_params = meta_train(
            estimator,
            outer(trial.method, settings["rate"], steps),
            jax.random.key(seed + 1000 * i),
            meta_params,
            data["train"],
            Run(
                folder=path if i == 0 else path.with_name(f"{path.name}-{i}"),
                steps=steps,
                chunk=settings["chunk"],
                episodes=episodes,
                validate=validation(test_loop, settings, data["validation"]),
            ),
        )
    return test_loop, meta_params


def build(
    method: str,
    ways: int,
    shape: tuple[int, ...],
    network: Sequence[Any],
    options: dict[str, Any],
) -> mx.Learner:
    """The learner; ``network`` is the name of one of `metajax.nets`, its width and its options.

    Batch normalisation looks at all queries of a task.
    """
    name, width, *net_options = network
    outputs = EMBEDDING if method == "ProtoNet" else ways
    net = getattr(mx.nets, name)(
        outputs,
        shape,
        width,
        **dict(*net_options),
    )
    if method == "ProtoNet":
        return mx.protonet(net, ways, EMBEDDING)

    problem = mx.problems.classifier(*net)
    if method == "MAML":
        return mx.maml(problem, options["rate"])
    if method == "FOMAML":
        return mx.fomaml(problem, options["rate"])
    if method == "Reptile":
        return mx.reptile(problem, optax.adam(options["rate"], b1=0.0))
    return imaml(method, problem, options)


def imaml(method: str, problem: mx.Problem, options: dict[str, Any]) -> mx.Learner:
    """Implicit MAML that solves by gradient descent or, Hessian-free, by Newton's method."""
    lam = options["lam"]
    damping = options["damping"]
    cg = mx.implicit.cg(options["cg"], damping)
    if method == "iMAML, GD":
        solver = mx.implicit.descend(
            optax.sgd(options["rate"]), options["solver_steps"]
        )
    else:
        solver = mx.implicit.newton(options["solver_steps"], cg)

    linear_solver = cg
    if "lanczos" in options:
        linear_solver = mx.implicit.lanczos(
            options["lanczos"], floor=lam, damping=damping
        )
    return mx.imaml(problem, solver, linear_solver, lam)


def loops(
    learner: mx.Learner, trial: Trial, options: dict[str, Any]
) -> tuple[mx.Inner, mx.Inner]:
    """The inner loops of training and of the test.

    There are as many queries a class as shots, in the test and in training, as is published. In
    training there may be several such sets, since a solve costs more than another set.
    """
    ways = trial.ways
    shots = trial.shots
    query_sets = options.get("query_sets", 1)
    trained = learner if query_sets == 1 else over_query_sets(learner, ways, query_sets)
    tasks = mx.tasks.episodes(ways, options.get("shots", shots), query_sets * shots)
    training_loop = mx.inner(trained, tasks, options["steps"], "heldout")

    test_tasks = mx.tasks.episodes(ways, shots)
    return training_loop, mx.inner(learner, test_tasks, options["test_steps"])


def over_query_sets(learner: mx.Learner, ways: int, sets: int) -> mx.Learner:
    """The learner with the mean over several query sets as the result of its test.

    Each is as large as one, and normalised by itself.
    """

    def separate(x):
        x = x.reshape(
            ways,
            sets,
            -1,
            *x.shape[1:],
        )
        return jnp.moveaxis(x, 1, 0).reshape(sets, -1, *x.shape[3:])

    def test(key, meta_params, state, batch):
        def test_one(query_set):
            return learner.test(key, meta_params, state, query_set)

        found = jax.vmap(test_one)(jax.tree.map(separate, batch))
        return jax.tree.map(lambda x: x.mean(0), found)

    return replace(learner, test=test)


def outer(method: str, rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, whose rate falls to a tenth.

    For Reptile the steps towards what was adapted, which shrink to none.
    """
    if method == "Reptile":
        return optax.sgd(optax.linear_schedule(1.0, 0.0, steps))
    return optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.1))


def validation(loop: mx.Inner, settings: Settings, data: Any) -> mx.Validation:
    """The error on tasks of the validation classes."""
    num_tasks = settings["validation_tasks"]
    at_once = settings["at_once"]

    def error(key, meta_params, data):
        return (
            1
            - accuracies(
                loop,
                key,
                meta_params,
                data,
                num_tasks,
                at_once,
            ).mean()
        )

    return mx.validation(
        error,
        jax.random.key(200),
        data,
        every=settings["validate"],
    )


def accuracies(
    loop: mx.Inner,
    key: Any,
    meta_params: Any,
    data: Any,
    num_tasks: int,
    at_once: int,
) -> np.ndarray:
    """The accuracy on the query batch of each task, ``at_once`` at a time to bound the memory."""
    rounds = -(-num_tasks // at_once)
    found = []
    for k in jax.random.split(key, rounds):
        curves = mx.evaluate(loop, k, meta_params, data, num_tasks=at_once)
        found.append(curves.test_metrics["accuracy"])
    return np.concatenate(found)[:num_tasks]


def table(setting: str, results: dict[str, Any], published: Published) -> str:
    """Ours beside what is published, in per cent with 95 % intervals over the test tasks."""
    lines = [f"{setting:<24}{'published':>16}{'ours':>16}"]
    for method, figure in published[setting].items():
        name = f"{setting}, {method}"
        if name in results:
            ours = f"{results[name]:.2f} ± {results[f'{name}: interval']:.2f}"
            lines.append(f"  {method:<22}{_text(*figure):>16}{ours:>16}")
    return "\n".join(lines)


def _text(per_cent: float, interval: float | None) -> str:
    return f"{per_cent}" if interval is None else f"{per_cent} ± {interval}"


def claims(
    results: Results,
    settings: Settings,
    published: Published,
    sources: Mapping[str, str],
) -> list[Claim]:
    """One for each method of each setting.

    ``sources`` says for each method where it is published.
    """
    found = []
    for setting in settings["budgets"]:
        for method, (per_cent, interval) in published[setting].items():
            name = f"{setting}, {method}"
            ours = [result[name] for result in results if name in result]
            wanted = per_cent - 2
            text = f"{name}: test accuracy, no more than 2 points below the published"
            text += f", >= {wanted:.2f} %"
            figure = _text(per_cent, interval) + " %"
            found.append(
                claim(
                    text,
                    sources[method],
                    figure,
                    ours,
                    at_least(wanted),
                )
            )
    return found


def picture(
    results: Results,
    settings: Settings,
    figure: Any,
    published: Published,
) -> None:
    """Accuracies and their intervals, ours beside those published, a panel for each setting."""
    axes = figure.subplots(
        1,
        len(settings["budgets"]),
        sharey=True,
        squeeze=False,
    )[0]
    for ax, setting in zip(axes, settings["budgets"], strict=True):
        _draw(results, setting, published[setting], ax)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def _draw(
    results: Results,
    setting: str,
    published: Mapping[str, Any],
    ax: Any,
) -> None:
    places = np.arange(len(published))
    style = {"markersize": 4, "linewidth": 1.2}
    grey = {"color": "#888888", "fmt": "o", **style}
    coloured = {"color": mx.plot.COLOURS[4], "fmt": "D", **style}

    per_cent, interval = zip(*published.values(), strict=True)
    known = [x or 0 for x in interval]
    ax.errorbar(
        per_cent,
        places - 0.15,
        xerr=known,
        label="published",
        **grey,
    )
    for place, method in zip(places, published, strict=True):
        name = f"{setting}, {method}"
        if name in results[0]:
            mean = np.mean([result[name] for result in results])
            error = np.mean([result[f"{name}: interval"] for result in results])
            ax.errorbar(mean, place + 0.15, xerr=error, **coloured)
    ax.errorbar([], [], label="ours", **coloured)

    ax.set_title(setting, fontsize=9)
    ax.set_xlabel("accuracy (%)", fontsize=9)
    ax.set(yticks=places, ylim=(len(published) - 0.5, -0.5))
    ax.set_yticklabels(list(published), fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", linewidth=0.4)
    ax.spines[["top", "right"]].set_visible(False)
