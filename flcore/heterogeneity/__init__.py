"""Client code for non-IID data: FedProx, SCAFFOLD and FedNova.

A job's executor calls these in its training loop. Arrays are of NumPy, PyTorch or another library, nested or flat.
FedProx needs nothing of the server. SCAFFOLD and FedNova have workflows (`scaffold`, `fed_nova`).
"""

from flcore.heterogeneity.control_variates import control_variates, model_tensors, with_control_variates
from flcore.heterogeneity.fed_nova import accumulation_norm, nova_update
from flcore.heterogeneity.fed_prox import ProximalTerm
from flcore.heterogeneity.scaffold import Scaffold

__all__ = [
    "ProximalTerm",
    "Scaffold",
    "accumulation_norm",
    "control_variates",
    "model_tensors",
    "nova_update",
    "with_control_variates",
]
