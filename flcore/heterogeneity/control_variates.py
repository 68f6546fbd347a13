"""SCAFFOLD's global state: the model, a control variate for each of its tensors, and who has counted last.

The control variate c of a tensor NAME is the tensor `control/NAME`, zero at the start. It travels, is aggregated and is
published with the model, as one set of tensors. The tensor `scaffold/counted_rounds` has an entry for each client of
the job: the last round whose update of that client is part of c.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flcore.errors import JobError, SpecError
from flcore.heterogeneity.gradients import Values
from flcore.model.arrays import AnyArrays, as_array, flatten

CONTROL_PREFIX, COUNTED_ROUNDS = "control/", "scaffold/counted_rounds"


def with_control_variates(model: AnyArrays, clients: int) -> dict[str, Values]:
    """Return a first model with SCAFFOLD's control variates, for the function that `server.model` names.

    Args:
        model: The first model: arrays of any library by name, nested or not.
        clients: The number of clients in the job's contract.

    Returns:
        The model's tensors, a control variate of zeros for each tensor of floats (float32 for narrower ones), and the
        rounds counted. All are NumPy arrays.

    Raises:
        SpecError: `clients` is less than 1, the model has no floats, or a tensor has a name of a control variate.

    Example:
        >>> state = with_control_variates({"w": np.ones(2, np.float32)}, clients=3)
        >>> list(state), list(model_tensors(state))
        (['w', 'control/w', 'scaffold/counted_rounds'], ['w'])
    """
    if clients < 1:
        raise SpecError(f"clients: expected a number >= 1, got {clients}")
    tensors = {name: as_array(array, name) for name, array in flatten(model).items()}
    for name in tensors.keys() - model_tensors(tensors).keys():
        raise SpecError(f"tensor {name!r}: the prefix {CONTROL_PREFIX!r} is that of control variates")
    variates = {
        CONTROL_PREFIX + name: np.zeros(array.shape, np.float64 if array.dtype == np.float64 else np.float32)
        for name, array in tensors.items()
        if array.dtype.kind not in "iub"
    }
    if not variates:
        raise SpecError("expected a model with tensors of floats, got none")
    return {**tensors, **variates, COUNTED_ROUNDS: np.zeros(clients, np.int64)}


def model_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of the model alone, of a global state that SCAFFOLD has published.

    Args:
        state: The state's tensors by name, such as `flcore.load("runs/myjob/model.safetensors")`.

    Returns:
        The tensors that are no control variates, in the same order. All of them, if the state has none.
    """
    return {
        name: tensor for name, tensor in state.items() if not name.startswith(CONTROL_PREFIX) and name != COUNTED_ROUNDS
    }


def control_variates(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the control variates of a global state, by the names of their model's tensors."""
    return {
        name.removeprefix(CONTROL_PREFIX): tensor for name, tensor in state.items() if name.startswith(CONTROL_PREFIX)
    }


def counted_rounds(state: Mapping[str, Any], clients: int) -> Values:
    """Return the last round of each client that counts. Raises `JobError` unless the state has it for all clients."""
    if COUNTED_ROUNDS not in state:
        raise JobError(
            f"SCAFFOLD: the global model has no tensor {COUNTED_ROUNDS!r}; let the function of server.model return "
            "flcore.heterogeneity.with_control_variates(...), and let wire.tensors select its tensors"
        )
    counted: Values = state[COUNTED_ROUNDS]
    if counted.shape != (clients,):
        raise JobError(
            f"SCAFFOLD: the job has {clients} clients, the global model's control variates are for {counted.size}; "
            f"call with_control_variates(model, clients={clients})"
        )
    return counted


def close_round(
    sent: Mapping[str, Values], mean: Mapping[str, Values], answered: Sequence[int], number: int
) -> dict[str, Values]:
    """Return the next global state from the unweighted mean of a round's updates.

    The engine has added the mean change over the set S of clients that answered to every tensor. The paper adds that of
    the model as it is (with a server's rate of 1), and |S|/N of that of the control variates: c is the mean over all N
    clients, of whom the others have changed nothing.

    Args:
        sent: The state that the clients received.
        mean: `sent` plus the mean of their changes.
        answered: The indices in the contract of the clients whose updates count.
        number: The round's number.
    """
    clients = sent[COUNTED_ROUNDS].size
    counted = np.array(sent[COUNTED_ROUNDS])
    counted[list(answered)] = number
    state = {**mean, COUNTED_ROUNDS: counted}
    if len(answered) < clients:
        for name in mean:
            if name.startswith(CONTROL_PREFIX):
                change = np.subtract(mean[name], sent[name], dtype=np.float64)
                state[name] = (sent[name] + change * (len(answered) / clients)).astype(sent[name].dtype)
    return state
