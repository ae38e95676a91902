"""Other packages on the same meta-gradient: one process and one thread each, compared before any is
timed.

``python -m benchmarks.peers KIND NAME FOLDER`` is one of these processes: it writes its first
gradient into the folder, says so, and then computes one more for each line it is sent, answering
with the seconds that took.
"""

# pyright: reportMissingImports=false
# The peers are an extra, and need not be there.

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    Limits,
    Measured,
    Program,
    agree,
    compiled,
    machine_limits,
    peak_resident,
    reset_peak,
    timed,
    with_times,
)
from benchmarks.table import Row, Setting, Target

PACKAGES = {"torch.func": "torch", "higher": "higher", "TorchOpt": "torchopt", "jaxopt": "jaxopt"}


def race(setting: Setting, w: Any, rtol: float, target: Target) -> list[Row]:
    """A row for each peer; the fastest bears the target. A peer without figures has a note with the
    reason.
    """
    what = f"{w.steps} steps, one thread"
    with tempfile.TemporaryDirectory() as folder:
        runners, notes, reference = {}, {}, None
        try:
            for name in ("ours", *PACKAGES):
                runner = _Runner(w.kind, name, Path(folder), setting.smoke)
                try:
                    gradient = runner.start()
                    reference = gradient if reference is None else reference
                    agree(name, gradient, reference, rtol)
                    runners[name] = runner
                except (RuntimeError, ValueError) as e:
                    runner.close()
                    if name == "ours":
                        raise
                    notes[name] = str(e)
            for _ in range(2 if setting.smoke else 15):
                for runner in runners.values():
                    runner.step()
            found = {name: runner.result() for name, runner in runners.items()}
        finally:
            for runner in runners.values():
                runner.close()
    ours, rows = found.pop("ours"), []
    for i, (name, (m, version)) in enumerate(
        sorted(found.items(), key=lambda item: item[1][0].seconds)
    ):
        detail = {"ours": ours[0]._asdict(), name: m._asdict(), "version": version}
        row = Row(
            w.kind,
            what,
            "ms",
            1e3 * ours[0].seconds,
            1e3 * m.seconds,
            name,
            ours[0].share,
            detail=detail,
        )
        rows.append(row._replace(targets=() if i else (target,)))
    return rows + [Row(w.kind, what, against=name, note=note) for name, note in notes.items()]


class _Runner:
    """A contender's process, seen from outside."""

    def __init__(self, kind: str, name: str, folder: Path, smoke: bool):
        self.path = folder / f"{name}.npz"
        self.errors = (folder / f"{name}.txt").open("w+")
        command = [
            sys.executable,
            "-m",
            "benchmarks.peers",
            kind,
            name,
            str(folder),
            *["smoke"] * smoke,
        ]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self.seconds, self.last = [], {}

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(
                ([x.strip() for x in self.errors if x.strip()] or ["it died without a word"])[-1]
            )
        return json.loads(line)

    def start(self) -> list[np.ndarray]:
        self.first = self._answer()
        with np.load(self.path) as file:
            return [file[k] for k in file]

    def step(self) -> None:
        print("go", file=self.process.stdin, flush=True)
        self.last = self._answer()
        self.seconds.append(self.last["seconds"])

    def result(self) -> tuple[Measured, str]:
        cost = Measured(float("nan"), float("nan"), 0, limit_seconds=self.first["limit_seconds"])
        return with_times(
            cost._replace(peak_resident_bytes=self.last["peak"]), self.seconds
        ), self.first["version"]

    def close(self) -> None:
        self.process.communicate()
        self.errors.close()


def main(kind: str, name: str, folder: str, smoke: bool) -> None:
    """One contender, seen from inside."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            0, {min(os.sched_getaffinity(0))}
        )  # before any thread pool counts the cores
    answers, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    package = PACKAGES.get(name, "metajax")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("not installed: pip install 'metajax[peers]'") from None

    from benchmarks.cases.maml import workload

    w = workload(kind, smoke)
    step, read, limit = _contender(name, w, smoke)
    reset_peak()  # ours has measured the machine
    np.savez(Path(folder) / f"{name}.npz", *read(step()))
    print(
        json.dumps({"version": f"{package} {version}", "limit_seconds": limit}),
        file=answers,
        flush=True,
    )
    for _ in sys.stdin:
        seconds, result = timed(step)
        del result
        print(json.dumps({"seconds": seconds, "peak": peak_resident()}), file=answers, flush=True)


def _contender(name: str, w: Any, smoke: bool):
    """A function that computes the meta-gradient, one that gives it as arrays like ours, and the
    limit's seconds.
    """
    import jax

    def leaves(tree):
        return [np.asarray(x) for x in jax.tree.leaves(tree)]

    if name == "ours":
        limits = Limits(1e9, 1e9) if smoke else machine_limits()
        run, cost = compiled(Program(w.ours, w.args), limits)
        return run, leaves, cost.limit_seconds
    if name == "jaxopt":
        run, _ = compiled(Program(_jaxopt(w), (w.args[1], *w.batches)), Limits(1, 1))
        return run, leaves, 0.0
    import torch

    torch.set_num_threads(1)
    flat, treedef = jax.tree.flatten(w.args[1])
    params = [torch.from_numpy(_to_torch(np.array(x))).requires_grad_() for x in flat]
    batches = [torch.from_numpy(np.array(b)) for b in w.batches]
    images, labels = (
        [b.permute(0, 1, 4, 2, 3).contiguous() for b in batches[::2]],
        [b.long() for b in batches[1::2]],
    )
    tasks = images[0], labels[0], images[1], labels[1]
    make = {"torch.func": _torch_func, "higher": _higher, "TorchOpt": _torchopt}[name]
    shapes = [x.shape for x in flat]

    def read(gradients):
        arrays = [g.detach().numpy() for g in gradients]
        return [
            x.transpose(2, 3, 1, 0) if len(s) == 4 else x
            for x, s in zip(arrays, shapes, strict=True)
        ]

    return make(w, _torch_net(treedef, fused=name != "torch.func"), params, tasks), read, 0.0


def _to_torch(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)) if x.ndim == 4 else x


def _torch_net(treedef, fused: bool):
    """Cross-entropy of conv-4 ``(params, images [B, C, H, W], labels [B])``, params in the order of
    our leaves.

    ``fused`` takes PyTorch's batch normalisation, whose second derivatives were 1.5 % off under
    torch.func.vmap.
    """
    import jax
    from torch.nn import functional as F

    def loss(params, x, y):
        tree = jax.tree.unflatten(treedef, params)
        for layer in tree["body"]:
            # SAME padding, as TensorFlow and JAX have it: what is missing to the right and below.
            missing = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[:-3:-1]]
            x = F.pad(x, [m for n in missing for m in (n // 2, n - n // 2)])
            x = F.conv2d(x, layer["w"], layer["b"], stride=2)
            if fused:
                x = F.batch_norm(
                    x, None, None, layer["scale"], layer["offset"], training=True, eps=1e-5
                )
            else:
                x = x - x.mean((0, 2, 3), keepdim=True)
                x = x * (x.square().mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt()
                x = x * layer["scale"][:, None, None] + layer["offset"][:, None, None]
            x = F.relu(x)
        x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        return F.cross_entropy(x @ tree["head"]["w"] + tree["head"]["b"], y)

    return loss


def _proximal(w, loss):
    """The inner objective of iMAML ``(phi, theta, x, y)``."""
    return lambda phi, theta, x, y: (
        loss(phi, x, y)
        + w.lam / 2 * sum(((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True))
    )


def _torch_func(w, loss, params, tasks):
    import torch
    from torch.func import grad, vjp, vmap

    params = tuple(p.detach() for p in params)

    def adapted(theta, x, y, x_query, y_query):
        phi = theta
        for _ in range(w.steps):
            phi = tuple(p - w.rate * g for p, g in zip(phi, grad(loss)(phi, x, y), strict=True))
        return loss(phi, x_query, y_query)

    def meta_loss(theta):
        return vmap(adapted, (None, 0, 0, 0, 0))(theta, *tasks).mean()

    def dot(a, b):
        return sum((x * y).sum() for x, y in zip(a, b, strict=True))

    def plus(a, scale, b):
        return tuple(x + scale * y for x, y in zip(a, b, strict=True))

    def implicit(x, y, x_query, y_query):
        phi = params
        for _ in range(w.steps):
            phi = plus(phi, -w.rate, grad(_proximal(w, loss))(phi, params, x, y))
        r = p = grad(loss)(phi, x_query, y_query)
        solution, rr = tuple(torch.zeros_like(x) for x in r), dot(r, r)
        product = vjp(lambda phi: grad(loss)(phi, x, y), phi)[1]
        for _ in range(w.cg):
            q = plus(p, 1 / w.lam, product(p)[0])
            a = rr / dot(p, q)
            solution, r = plus(solution, a, p), plus(r, -a, q)
            rr, old = dot(r, r), rr
            p = plus(r, rr / old, p)
        return solution

    def solved():
        return [g.mean(0) for g in vmap(implicit)(*tasks)]

    return solved if w.kind == "imaml" else lambda: grad(meta_loss)(params)


def _module(loss, params):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.all = torch.nn.ParameterList(
                [torch.nn.Parameter(p.detach().clone()) for p in params]
            )

        def forward(self, x, y):
            return loss(list(self.all), x, y)

    return Net()


def _higher(w, loss, params, tasks):
    import higher
    import torch

    if w.kind == "imaml":
        raise SystemExit("has no implicit gradient: it unrolls only")
    net = _module(loss, params)
    sgd = torch.optim.SGD(net.parameters(), lr=w.rate)

    def step():
        sgd.zero_grad()
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (inner, optimizer):
                for _ in range(w.steps):
                    optimizer.step(inner(x, y))
                (inner(x_query, y_query) / len(tasks[0])).backward()
        return [p.grad.clone() for p in net.parameters()]

    return step


def _torchopt(w, loss, params, tasks):
    import torch
    import torchopt

    def maml():
        net.zero_grad()
        start, losses = torchopt.extract_state_dict(net, by="reference"), []
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            sgd = torchopt.MetaSGD(net, lr=w.rate)
            for _ in range(w.steps):
                sgd.step(net(x, y))
            losses.append(net(x_query, y_query))
            torchopt.recover_state_dict(net, start)
        torch.stack(losses).mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    objective = _proximal(w, loss)

    def stationary(phi, theta, x, y):
        return torch.func.grad(objective)(phi, theta, x, y)

    cg = torchopt.linear_solve.solve_cg(maxiter=w.cg, rtol=0.0, atol=0.0)

    @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=cg)
    def solve(phi, theta, x, y):
        phi = tuple(p.detach().clone() for p in phi)
        for _ in range(w.steps):
            gradients = torch.func.grad(objective)(phi, theta, x, y)
            phi = tuple(p - w.rate * g.detach() for p, g in zip(phi, gradients, strict=True))
        return phi

    def imaml():
        theta, losses = tuple(params), []
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            losses.append(loss(solve(theta, theta, x, y), x_query, y_query))
        return torch.autograd.grad(torch.stack(losses).mean(), theta)

    net = _module(loss, params)
    return imaml if w.kind == "imaml" else maml


def _jaxopt(w):
    from functools import partial

    import jax
    import jaxopt

    from benchmarks.cases.maml import plain_loss

    def objective(phi, theta, x, y):
        pull = sum(jax.tree.leaves(jax.tree.map(lambda p, t: ((p - t) ** 2).sum(), phi, theta)))
        return plain_loss(phi, x, y) + (w.lam / 2 * pull if w.kind == "imaml" else 0.0)

    cg = partial(jaxopt.linear_solve.solve_cg, maxiter=w.cg, tol=0.0)
    descent = jaxopt.GradientDescent(
        objective, maxiter=w.steps, tol=0.0, stepsize=w.rate, acceleration=False, unroll=w.kind == "maml",
        implicit_diff=w.kind == "imaml", implicit_diff_solve=cg,
    )  # fmt: skip

    def meta_gradient(params, *batches):
        def task_loss(theta, x, y, x_query, y_query):
            return plain_loss(descent.run(theta, theta, x, y).params, x_query, y_query)

        def meta_loss(theta):
            return jax.vmap(task_loss, (None, 0, 0, 0, 0))(theta, *batches).mean()

        return jax.grad(meta_loss)(params)

    return meta_gradient


if __name__ == "__main__":
    main(*sys.argv[1:4], smoke="smoke" in sys.argv[4:])
