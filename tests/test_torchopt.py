"""Meta-gradients beside those of TorchOpt, in float64 on the same inputs.

It is an extra, ``pip install 'metajax[peers]'``, and PyTorch is large: without them these are
skipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

REASON = "TorchOpt is not installed: pip install 'metajax[peers]'"
torch = pytest.importorskip("torch", reason=REASON)
torchopt = pytest.importorskip("torchopt", reason=REASON)

RNG = np.random.default_rng(0)
THETA = [RNG.normal(size=shape) for shape in ((3, 4), (4,), (4, 3), (3,))]
X, X_QUERY = RNG.normal(size=(2, 6, 3))
Y, Y_QUERY = RNG.integers(0, 3, (2, 6))
RATE, STEPS, CG = 0.3, 4, 5
LAM = 1.5  # enough for positive curvature: where it is negative, our solver stops


def ours(learner, steps):
    """The query loss after ``steps`` on the support batch, and its gradient."""
    tasks = mx.Tasks(
        lambda key, data: (),
        lambda key, data, task: {"image": X, "label": Y},
        lambda key, data, task: {"image": X_QUERY, "label": Y_QUERY},
    )
    estimator = mx.bptt(mx.inner(learner, tasks, steps, meta_loss="heldout"), 1)
    theta = list(map(jnp.asarray, THETA))
    state = estimator.init(jax.random.key(0), theta, ())
    result, _ = estimator.estimate(jax.random.key(1), theta, state, ())
    return result.loss, result.updates


def perceptron(params, x):
    w0, b0, w1, b1 = params
    return jnp.tanh(x @ w0 + b0) @ w1 + b1


PROBLEM = mx.problems.classifier(lambda key: THETA, perceptron)


def loss_of(params, x, y):
    """The same in PyTorch."""
    w0, b0, w1, b1 = params
    logits = torch.tanh(torch.as_tensor(x) @ w0 + b0) @ w1 + b1
    return torch.nn.functional.cross_entropy(logits, torch.as_tensor(y))


def agree(ours, loss, gradients):
    got_loss, got = ours
    np.testing.assert_allclose(got_loss, loss.item(), rtol=1e-12)
    for mine, theirs in zip(got, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-12)


class Net(torch.nn.Module):
    """Parameters of which the loss is what it gives."""

    def __init__(self):
        super().__init__()
        params = [torch.nn.Parameter(torch.tensor(x)) for x in THETA]
        self.params = torch.nn.ParameterList(params)

    def forward(self, x, y):
        return loss_of(list(self.params), x, y)


@pytest.mark.slow
def test_maml(x64):
    net = Net()
    theta = list(net.parameters())
    sgd = torchopt.MetaSGD(net, lr=RATE)
    for _ in range(STEPS):
        sgd.step(net(X, Y))
    loss = net(X_QUERY, Y_QUERY)
    agree(ours(mx.maml(PROBLEM, RATE), STEPS), loss, torch.autograd.grad(loss, theta))


@pytest.mark.filterwarnings("ignore:We've integrated functorch:FutureWarning")
def test_imaml(x64):
    """A few steps of descent and of conjugate gradients: neither solves its problem to the end."""

    def objective(phi, theta):
        pull = sum(((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True))
        return loss_of(phi, X, Y) + LAM / 2 * pull

    def stationary(phi, theta):
        return torch.func.grad(objective)(phi, theta)

    cg = torchopt.linear_solve.solve_cg(maxiter=CG, rtol=0.0, atol=0.0)

    @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=cg)
    def solve(phi, theta):
        phi = tuple(p.detach() for p in phi)
        for _ in range(STEPS):
            gradients = stationary(phi, tuple(t.detach() for t in theta))
            pairs = zip(phi, gradients, strict=True)
            phi = tuple(p - RATE * g.detach() for p, g in pairs)
        return phi

    theta = tuple(torch.tensor(x, requires_grad=True) for x in THETA)
    phi = solve(theta, theta)
    loss = loss_of(phi, X_QUERY, Y_QUERY)
    gradients = torch.autograd.grad(loss, theta)

    descent = mx.implicit.descend(optax.sgd(RATE), STEPS)
    learner = mx.imaml(PROBLEM, descent, mx.implicit.cg(CG), LAM)
    agree(ours(learner, 1), loss, gradients)
