"""Checks that tests of several packages share."""

import copy

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback


class Ratios(BaseCallback):
    """Checks, before every update, that the policy finds the rollout as likely as the rollout did."""

    def __init__(self):
        super().__init__()
        self.greatest, self.rollouts, self.pathways = 0.0, 0, []

    def _on_rollout_end(self):
        buffer, policy = self.model.rollout_buffer, self.model.policy
        state = np.random.get_state()
        policy.set_training_mode(True)
        key = policy.noise_key.clone()
        for batch in buffer.get(8):
            actions = (
                batch.actions.long().flatten()
                if isinstance(self.model.action_space, spaces.Discrete)
                else batch.actions
            )
            log_prob = policy.evaluate_actions(batch.observations, actions)[1]
            self.greatest = max(
                self.greatest, float((log_prob - batch.old_log_prob).abs().max().detach())
            )
            assert log_prob.exp().max() > 0
        assert torch.equal(key, policy.noise_key)
        np.random.set_state(state)
        self.rollouts += 1
        records = buffer.records
        both = (
            np.stack([records["previous"], records["acted"]], axis=-1)
            if "acted" in records
            else None
        )
        self.pathways.append(both)

    def _on_step(self):
        return True


def never_offered(made):
    """The same hub by another digest, so that nobody has its weights."""
    made = copy.deepcopy(made)
    kwargs = made["policy_kwargs"]
    spec = kwargs.get("features_extractor_kwargs", kwargs)["hub"]
    for number, card in enumerate(spec["sources"]):
        card["sha256"] = f"{number:064x}"
    return made
