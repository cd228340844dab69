"""Networks and sources of the tests in this folder."""

import torch
from torch import nn
from untrained import FLAT, KEYS

from hubrl import Source


def encoder(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh())


def mine(encoder_=None, head=None, actions=KEYS, **description):
    description = {
        "name": "mine",
        "observation_space": FLAT,
        "action_space": actions,
        **description,
    }
    return Source(encoder=encoder_ or encoder(), head=head or nn.Linear(8, 3), **description)


def same(tensors, others):
    return list(tensors) == list(others) and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )
