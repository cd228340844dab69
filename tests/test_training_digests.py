"""Short trainings of every algorithm and method are the same, bit for bit, as when their digests were stored."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from toys import Toy, target, tiny_hub
from training_digests import BY_NAME, digest, machine, stored, trained

from hubrl import BadConfig, HubCallback

HERE = machine()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_training_is_the_one_whose_digest_is_stored(name):
    known = stored().get(HERE, {}).get(name)
    found = digest(trained(BY_NAME[name]))
    if known is None:
        assert digest(trained(BY_NAME[name])) == found, "the same seed trains to the same bits"
        pytest.skip(
            f"No digest is stored for this machine ({HERE}); two trainings were compared with each other."
        )
    assert found == known, (
        "numbers changed; where they are meant to, run `python tests/training_digests.py`"
    )


LOAD = """
import sys
import numpy as np
import stable_baselines3
rows = np.load(sys.argv[1])
for path in sys.argv[2:]:
    algorithm = getattr(stable_baselines3, path.rsplit("-", 1)[1].removesuffix(".zip"))
    model = algorithm.load(path, device="cpu")
    np.save(path + ".npy", model.predict(rows, deterministic=True)[0])
"""
SAVED = {
    PPO: ["ppo-hub-pathway-outputs-box", "ppo-hub-pathway-features-box", "ppo-uniform-outputs-box"],
    DQN: [
        "dqn-hub-pathway-outputs-discrete",
        "dqn-finetune-outputs-discrete",
        "dqn-multipolar-outputs-discrete",
    ],
}


def test_a_saved_model_acts_the_same_in_a_fresh_process(tmp_path):
    rows, models = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), {}
    np.save(tmp_path / "rows.npy", rows)
    for algorithm, names in SAVED.items():
        for name in names:
            path = tmp_path / f"{name}-{algorithm.__name__}.zip"
            models[path] = trained(BY_NAME[name])
            models[path].save(path)
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "rows.npy", *models], check=True)
    for path, model in models.items():
        np.testing.assert_allclose(
            np.load(f"{path}.npy"), model.predict(rows, deterministic=True)[0], atol=1e-6
        )


def recorded(**options):
    """A PPO after one rollout whose steps are recorded, as before its update."""
    made = tiny_hub(Toy()).agent(PPO, **options)
    model = target(PPO, Toy(), made, seed=0)
    _, callback = model._setup_learn(32, HubCallback(probe_share=0.0, warmup_share=0.0))
    callback.on_training_start({"total_timesteps": 32}, {})
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=32)
    return model


@pytest.mark.parametrize(
    "options", [{}, {"hold": 1, "judging_share": 0.0}], ids=["held", "drawn-anew"]
)
def test_a_minibatch_without_its_record_is_refused_in_training(options):
    """A copy has the same numbers and no record: without its noise its log-probabilities would be wrong by more than a nat."""
    model = recorded(**options)
    policy = model.policy
    policy.set_training_mode(True)
    batch = next(model.rollout_buffer.get(8))
    policy.evaluate_actions(batch.observations, batch.actions)
    with pytest.raises(
        BadConfig,
        match="observations without a record of the acting pathways .* pass the observations that the rollout buffer yields",
    ):
        policy.evaluate_actions(batch.observations.observations.clone(), batch.actions)


@pytest.mark.parametrize("actions", ["box", "discrete"])
def test_after_a_training_log_probabilities_are_of_the_mixture(actions):
    case = BY_NAME[f"ppo-hub-pathway-outputs-{actions}"]
    policy = trained(case).policy
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    done = torch.zeros(5, 2) if actions == "box" else torch.zeros(5)
    with torch.no_grad():
        _, log_prob, _ = policy.evaluate_actions(rows, done)
        torch.testing.assert_close(log_prob, policy.get_distribution(rows).log_prob(done))
        if actions == "discrete":
            every = torch.stack(
                [
                    policy.evaluate_actions(rows, torch.full((5,), float(choice)))[1]
                    for choice in range(3)
                ]
            )
            torch.testing.assert_close(every.exp().sum(dim=0), torch.ones(5))
