"""HubCallback beside other loggers: SB3's CSV and JSON, a writer like MLflow's, Weights & Biases."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.utils import set_random_seed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import target, tiny_hub, toy_for

from hubrl import HubCallback


def learned(algorithm, logger=None, *more, steps=350, **kwargs):
    """A model that learned under the callback and others."""
    set_random_seed(0)
    env = toy_for(algorithm)
    model = target(algorithm, env, tiny_hub(env).agent(algorithm), **kwargs)
    if logger is not None:
        model.set_logger(logger)
    probes = HubCallback(probe_share=0.9, log_every=1)
    model.learn(steps, callback=[probes, *more], log_interval=1)
    model.logger.close()
    return model


class LikeMLflow(KVWriter):
    """The writer of SB3's guide to MLflow: numbers that are not excluded, by name."""

    def __init__(self):
        self.metrics = {}

    def write(self, key_values, key_excluded, step=0):
        for (key, value), (_, excluded) in zip(
            sorted(key_values.items()), sorted(key_excluded.items()), strict=True
        ):
            if "mlflow" in (excluded or ()):
                continue
            if isinstance(value, np.ScalarType) and not isinstance(value, str):
                self.metrics.setdefault(key, []).append(float(value))

    def close(self):
        pass


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_writer_like_mlflows_gets_numbers_under_names_that_mlflow_takes(algorithm):
    writer = LikeMLflow()
    learned(algorithm, Logger(None, [writer]))
    assert writer.metrics["pathway/acted/ppo-0"]
    assert all(re.fullmatch(r"[\w./ :-]+", name) for name in writer.metrics)


def test_csv_and_json_have_numbers_and_verdicts_in_words(tmp_path):
    learned(PPO, configure(str(tmp_path), ["csv", "json"]))
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    verdicts = {row["probe/verdict/ppo-0"] for row in rows} - {""}
    assert verdicts <= {"dropped", "deferred", "in doubt", "kept"}
    assert verdicts
    assert float(rows[-1]["pathway/acted/ppo-0"]) >= 0
    lines = (tmp_path / "progress.json").read_text().splitlines()
    assert any("probe/verdict/sac-1" in json.loads(line) for line in lines)


def test_tensorboard_gets_the_decisions_and_a_figure_of_who_acted(tmp_path):
    model = learned(PPO, None, tensorboard_log=str(tmp_path))
    tags = EventAccumulator(model.logger.dir).Reload().Tags()
    assert "pathway/acted" in tags["images"]
    assert "trust/log/text_summary" in tags["tensors"]
    assert "probe/verdict/ppo-0/text_summary" in tags["tensors"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_watches_beside_it_and_changes_nothing(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.integration.sb3 import WandbCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = learned(PPO, None, tensorboard_log=str(tmp_path / "plain"))
    run = wandb.init(project="hubrl", dir=str(tmp_path), sync_tensorboard=True)
    watched = learned(
        PPO,
        None,
        WandbCallback(gradient_save_freq=10, verbose=0),
        tensorboard_log=str(tmp_path / "watched"),
    )
    keys = set(run.summary.keys())
    run.finish()
    before, after = plain.policy.state_dict(), watched.policy.state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    assert any("pathway" in key for key in keys) or list(tmp_path.glob("wandb/offline-run-*"))
