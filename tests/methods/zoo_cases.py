"""Cases and helpers of the tests of Zoo-Tuning."""

import pytest
import torch

ZOO = ("zoo-tuning", "lite-zoo-tuning")
BOTH = pytest.mark.parametrize("name", ZOO)


def gates_by_hand(gates, rows, start=None):
    pooled = rows if rows.ndim == 2 else rows.mean(dim=(2, 3))
    hidden = (pooled @ gates.squeeze.weight.T).clamp_min(0)
    shares = (
        2 / gates.n_sources / (1 + torch.exp(-(hidden @ gates.excite.weight.T + gates.excite.bias)))
    )
    return shares if start is None else shares - 1 / gates.n_sources + start


def load(layer, part):
    layer.load_state_dict(
        {name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()}
    )
