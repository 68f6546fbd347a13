"""FedProx, SCAFFOLD and FedNova with PyTorch: gradients of parameters, compared with NumPy's."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore.heterogeneity import ProximalTerm, Scaffold, nova_update, with_control_variates

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (make test-torch)"),
]


def network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


def with_gradients(net: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and their gradients, by name."""
    import torch

    torch.manual_seed(1)
    net(torch.randn(8, 3)).square().mean().backward()
    parameters = dict(net.named_parameters())
    return parameters, {name: each.grad for name, each in parameters.items()}


def read_only(state: Any) -> dict[str, Any]:
    """The arrays as a task receives them."""
    arrays = {
        name: np.array(array if isinstance(array, np.ndarray) else array.numpy()) for name, array in state.items()
    }
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def task(directory: Path) -> flcore.Task:
    return flcore.Task("train", 1, 1, 0, {}, flcore.Site("a", ("a",), state_directory=directory))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_proximal_term_of_parameters(dtype: str) -> None:
    import torch

    net = network()
    parameters, gradients = with_gradients(net)
    kind = getattr(torch, dtype)
    parameters = {name: torch.nn.Parameter(each.detach().to(kind)) for name, each in parameters.items()}
    gradients = {name: each.to(kind) for name, each in gradients.items()}
    start = {name: np.full(tuple(each.shape), 0.5, np.float32) for name, each in parameters.items()}
    found = ProximalTerm(read_only(start), 0.25).add_to(gradients, parameters)
    for name, gradient in found.items():
        expected = gradients[name] + 0.25 * (parameters[name].detach() - 0.5)
        assert torch.equal(gradient, expected) and gradient.dtype == kind and not gradient.requires_grad
        parameters[name].grad = gradient  # what a training loop does with it


def test_a_round_of_scaffold(tmp_path: Path) -> None:
    import torch

    net = network()
    state = with_control_variates(net.state_dict(), clients=1)
    state["control/0.weight"][:] = 0.125
    scaffold = Scaffold(read_only(state), task(tmp_path))
    net.load_state_dict({name: torch.tensor(array) for name, array in scaffold.model.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    parameters, gradients = with_gradients(net)
    before = parameters["0.weight"].detach().clone()
    for name, gradient in scaffold.correct(gradients).items():
        parameters[name].grad = gradient
    optimizer.step()
    moved = (parameters["0.weight"].detach() - before).numpy()
    np.testing.assert_allclose(moved, -0.5 * (gradients["0.weight"].numpy() + 0.125), rtol=1e-5)
    update = scaffold.update(net.state_dict(), steps=1, learning_rate=0.5)
    assert set(update.arrays) == set(state)
    assert update.arrays["1.num_batches_tracked"].tolist() == 1
    # c_i⁺ = - c + (x - y) / (K · η), which is the gradient itself
    np.testing.assert_allclose(update.arrays["control/0.weight"], gradients["0.weight"].numpy(), rtol=1e-4, atol=1e-6)


def test_an_update_of_fed_nova() -> None:
    net = network()
    start = read_only(net.state_dict())
    with_gradients(net)
    update = nova_update(start, net.state_dict(), examples=10, norm=5)
    assert set(update.arrays) == set(start) and update.weight == 2
    assert update.arrays["1.running_mean"].any() and not update.arrays["0.weight"].any()


def test_nothing_imports_torch_before_it_is_used() -> None:
    import subprocess
    import sys

    program = "import sys, flcore.heterogeneity, flcore.partition; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
