"""A meta-gradient in this or another package, in a process of its own.

``python -m benchmarks.contenders KIND NAME FOLDER`` writes its first gradient into the folder, says
so, and then computes one more for each line it is sent, answering with the seconds that took. It is
started by `benchmarks.peers`.
"""

# pyright: reportMissingImports=false
# The peers are an extra, and need not be there.

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import (
    Limits,
    Program,
    compiled,
    machine_limits,
    peak_resident,
    reset_peak,
    timed,
)
from benchmarks.peers import PACKAGES
from benchmarks.workloads import Workload, plain_loss, workload

Step = Callable[[], Any]  # computes the meta-gradient
Read = Callable[[Any], list[np.ndarray]]  # gives it as arrays like ours


def main(
    kind: str,
    name: str,
    folder: str,
    smoke: bool,
) -> None:
    """One contender, seen from inside."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what packages print is no answer

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    package = PACKAGES.get(name, "metajax")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("not installed: pip install 'metajax[peers]'") from None

    step, read, limit_seconds = contender(name, workload(kind, smoke), smoke)
    reset_peak()  # ours has measured the machine
    np.savez(Path(folder) / f"{name}.npz", *read(step()))
    answer(version=f"{package} {version}", limit_seconds=limit_seconds)
    for _ in sys.stdin:
        seconds, result = timed(step)
        del result
        answer(seconds=seconds, peak=peak_resident())


def contender(name: str, work: Workload, smoke: bool) -> tuple[Step, Read, float]:
    """What computes the meta-gradient, what reads it, and the limit's seconds where they count."""
    if name == "ours":
        limits = Limits(1e9, 1e9) if smoke else machine_limits()
        run, cost = compiled(Program(work.ours, work.args), limits)
        return run, read_jax, cost.limit_seconds
    if name == "jaxopt":
        program = Program(by_jaxopt(work), (work.params, *work.batches))
        run, _ = compiled(program, Limits(1, 1))
        return run, read_jax, 0.0
    step, read = by_torch(name, work)
    return step, read, 0.0


def read_jax(tree: Any) -> list[np.ndarray]:
    """The leaves."""
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def by_jaxopt(work: Workload) -> Callable[..., Any]:
    """MAML by unrolling, iMAML by implicit differentiation."""
    import jaxopt
    from jaxopt.linear_solve import solve_cg

    is_implicit = work.kind == "imaml"

    def squared_distance(phi, theta):
        difference = jax.tree.map(jnp.subtract, phi, theta)
        return optax.tree.norm(difference, squared=True)

    def objective(phi, theta, x, y):
        loss = plain_loss(phi, x, y)
        if is_implicit:
            loss += work.lam / 2 * squared_distance(phi, theta)
        return loss

    descent = jaxopt.GradientDescent(
        objective,
        maxiter=work.steps,
        tol=0.0,
        stepsize=work.rate,
        acceleration=False,
        unroll=not is_implicit,
        implicit_diff=is_implicit,
        implicit_diff_solve=partial(solve_cg, maxiter=work.cg, tol=0.0),
    )

    def meta_gradient(params, *batches):
        def task_loss(theta, x, y, x_query, y_query):
            phi = descent.run(theta, theta, x, y).params
            return plain_loss(phi, x_query, y_query)

        def meta_loss(theta):
            losses = jax.vmap(task_loss, (None, 0, 0, 0, 0))
            return losses(theta, *batches).mean()

        return jax.grad(meta_loss)(params)

    return meta_gradient


def by_torch(name: str, work: Workload) -> tuple[Step, Read]:
    """One of the packages on PyTorch, on parameters and images in its layout."""
    import torch

    torch.set_num_threads(1)
    leaves, treedef = jax.tree.flatten(work.params)
    params = []
    for leaf in leaves:
        param = torch.from_numpy(_torch_layout(np.array(leaf)))
        params.append(param.requires_grad_())

    x, y, x_query, y_query = (
        torch.from_numpy(np.array(batch)) for batch in work.batches
    )
    tasks = (_channels_first(x), y.long(), _channels_first(x_query), y_query.long())

    def read(gradients):
        return [_our_layout(g.detach().numpy()) for g in gradients]

    loss = torch_loss(treedef, fused=name != "torch.func")
    makers = {"torch.func": by_torch_func, "higher": by_higher, "TorchOpt": by_torchopt}
    return makers[name](work, loss, params, tasks), read


def _torch_layout(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4:
        return x
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1))


def _our_layout(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x


def _channels_first(images: Any) -> Any:
    return images.permute(0, 1, 4, 2, 3).contiguous()


def torch_loss(treedef: Any, fused: bool) -> Callable[..., Any]:
    """Cross-entropy of conv-4 ``(params, images [B, C, H, W], labels [B])``.

    Its params are in the order of our leaves. ``fused`` takes PyTorch's batch normalisation, whose
    second derivatives were 1.5 % off under torch.func.vmap.
    """
    from torch.nn import functional as F

    normalised = _fused_normalisation if fused else _plain_normalisation

    def loss(params, x, y):
        tree = jax.tree.unflatten(treedef, params)
        for layer in tree["body"]:
            x = F.conv2d(
                _same_padding(x),
                layer["w"],
                layer["b"],
                stride=2,
            )
            x = F.relu(normalised(layer, x))
        features = x.permute(0, 2, 3, 1).flatten(1)
        head = tree["head"]
        return F.cross_entropy(features @ head["w"] + head["b"], y)

    return loss


def _same_padding(x: Any) -> Any:
    """As TensorFlow and JAX have it: what is missing is to the right and below."""
    from torch.nn import functional as F

    padding = []
    for size in x.shape[:-3:-1]:
        outputs = -(-size // 2)
        missing = max((outputs - 1) * 2 + 3 - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)


def _fused_normalisation(layer: dict[str, Any], x: Any) -> Any:
    from torch.nn import functional as F

    scale = layer["scale"]
    offset = layer["offset"]
    return F.batch_norm(
        x,
        None,
        None,
        scale,
        offset,
        training=True,
        eps=1e-5,
    )


def _plain_normalisation(layer: dict[str, Any], x: Any) -> Any:
    x = x - x.mean((0, 2, 3), keepdim=True)
    variance = x.square().mean((0, 2, 3), keepdim=True)
    scale = layer["scale"][:, None, None]
    offset = layer["offset"][:, None, None]
    return x * (variance + 1e-5).rsqrt() * scale + offset


def _proximal(work: Workload, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The inner objective of iMAML ``(phi, theta, x, y)``."""

    def objective(phi, theta, x, y):
        difference = _plus(phi, -1, theta)
        return loss(phi, x, y) + work.lam / 2 * _dot(difference, difference)

    return objective


def by_torch_func(
    work: Workload,
    loss: Callable,
    params: Sequence[Any],
    tasks: tuple,
) -> Step:
    """Function transformations, as in JAX; the conjugate gradients are written out."""
    from torch.func import grad, vmap

    params = tuple(p.detach() for p in params)

    def adapted_loss(theta, x, y, x_query, y_query):
        phi = theta
        for _ in range(work.steps):
            phi = _plus(phi, -work.rate, grad(loss)(phi, x, y))
        return loss(phi, x_query, y_query)

    def meta_loss(theta):
        losses = vmap(adapted_loss, (None, 0, 0, 0, 0))
        return losses(theta, *tasks).mean()

    def maml():
        return grad(meta_loss)(params)

    def imaml():
        task_gradient = partial(_implicit_gradient, work, loss, params)
        return [g.mean(0) for g in vmap(task_gradient)(*tasks)]

    return imaml if work.kind == "imaml" else maml


def _implicit_gradient(work, loss, params, x, y, x_query, y_query):
    import torch
    from torch.func import grad, vjp

    phi = params
    for _ in range(work.steps):
        gradient = grad(_proximal(work, loss))(phi, params, x, y)
        phi = _plus(phi, -work.rate, gradient)

    _, hessian_product = vjp(lambda phi: grad(loss)(phi, x, y), phi)
    r = grad(loss)(phi, x_query, y_query)
    p = r
    rr = _dot(r, r)
    solution = tuple(torch.zeros_like(x) for x in r)
    for _ in range(work.cg):
        (curvature,) = hessian_product(p)
        q = _plus(p, 1 / work.lam, curvature)
        a = rr / _dot(p, q)
        solution = _plus(solution, a, p)
        r = _plus(r, -a, q)
        old = rr
        rr = _dot(r, r)
        p = _plus(r, rr / old, p)
    return solution


def _dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


def _plus(a, scale, b):
    return tuple(x + scale * y for x, y in zip(a, b, strict=True))


def _module(loss: Callable, params: Sequence[Any]) -> Any:
    """The network as a module, for packages that want one."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
            self.all = torch.nn.ParameterList(copies)

        def forward(self, x, y):
            return loss(list(self.all), x, y)

    return Net()


def by_higher(
    work: Workload,
    loss: Callable,
    params: Sequence[Any],
    tasks: tuple,
) -> Step:
    """Unrolling with a patched module and optimizer."""
    import higher
    import torch

    if work.kind == "imaml":
        raise SystemExit("has no implicit gradient: it unrolls only")
    net = _module(loss, params)
    sgd = torch.optim.SGD(net.parameters(), lr=work.rate)

    def step():
        sgd.zero_grad()
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (
                inner,
                optimizer,
            ):
                for _ in range(work.steps):
                    optimizer.step(inner(x, y))
                (inner(x_query, y_query) / len(tasks[0])).backward()
        return [p.grad.clone() for p in net.parameters()]

    return step


def by_torchopt(
    work: Workload,
    loss: Callable,
    params: Sequence[Any],
    tasks: tuple,
) -> Step:
    """A differentiable optimizer for MAML, a custom root for iMAML."""
    if work.kind == "imaml":
        return _torchopt_imaml(work, loss, params, tasks)
    return _torchopt_maml(work, loss, params, tasks)


def _torchopt_maml(
    work: Workload,
    loss: Callable,
    params: Sequence[Any],
    tasks: tuple,
) -> Step:
    import torch
    import torchopt

    net = _module(loss, params)

    def step():
        net.zero_grad()
        start = torchopt.extract_state_dict(net, by="reference")
        losses = []
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            sgd = torchopt.MetaSGD(net, lr=work.rate)
            for _ in range(work.steps):
                sgd.step(net(x, y))
            losses.append(net(x_query, y_query))
            torchopt.recover_state_dict(net, start)
        torch.stack(losses).mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    return step


def _torchopt_imaml(
    work: Workload,
    loss: Callable,
    params: Sequence[Any],
    tasks: tuple,
) -> Step:
    import torch
    import torchopt

    objective = _proximal(work, loss)

    def stationary(phi, theta, x, y):
        return torch.func.grad(objective)(phi, theta, x, y)

    cg = torchopt.linear_solve.solve_cg(
        maxiter=work.cg,
        rtol=0.0,
        atol=0.0,
    )

    @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=cg)
    def solve(phi, theta, x, y):
        phi = tuple(p.detach().clone() for p in phi)
        for _ in range(work.steps):
            gradient = [
                g.detach()
                for g in stationary(
                    phi,
                    theta,
                    x,
                    y,
                )
            ]
            phi = _plus(phi, -work.rate, gradient)
        return phi

    def step():
        theta = tuple(params)
        losses = []
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            losses.append(
                loss(
                    solve(
                        theta,
                        theta,
                        x,
                        y,
                    ),
                    x_query,
                    y_query,
                )
            )
        return torch.autograd.grad(torch.stack(losses).mean(), theta)

    return step


if __name__ == "__main__":
    main(*sys.argv[1:4], smoke="smoke" in sys.argv[4:])
