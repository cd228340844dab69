"""Sources: made from a user's own modules, saved and loaded in hubs, asked for actions, and left as they are."""

import hashlib

import numpy as np
import pytest
import torch
from gymnasium import spaces
from source_cases import encoder, mine, same
from stable_baselines3 import DQN, PPO, SAC
from torch import nn
from untrained import ARM, FLAT, KEYS, Noise, untrained

from hubrl import Hub, Networks, Source, register_network
from hubrl.errors import (
    BadConfig,
    BadFile,
    SourcesNotLoaded,
    SpaceMismatch,
)


def with_batch_norm():
    """An encoder whose statistics and affine weights are far from where they start."""
    module = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8)
    )
    for _ in range(3):
        module(torch.randn(16, 4) * 5 + 2)
    nn.init.normal_(module[1].weight)
    return module


def test_a_source_of_the_users_modules_computes_what_they_compute(observations):
    body, head = encoder(), nn.Linear(8, 3)
    source = mine(body, head)
    assert source.width == 8
    torch.testing.assert_close(source.features(observations), body(observations))
    torch.testing.assert_close(
        source.outputs(observations), head(body(observations)).log_softmax(dim=1)
    )
    actions, _ = source.predict(observations.numpy(), deterministic=True)
    np.testing.assert_array_equal(actions, head(body(observations)).argmax(dim=1))


def test_a_source_is_a_copy_that_later_training_of_the_modules_does_not_reach(observations):
    body = encoder()
    source = mine(body)
    before = source.features(observations)
    nn.init.zeros_(body[0].weight)
    assert torch.equal(source.features(observations), before)


def test_a_head_for_a_box_returns_means_or_means_and_log_standard_deviations(observations):
    means, both = nn.Linear(8, 2), nn.Linear(8, 4)
    mean, log_std = mine(head=means, actions=ARM).outputs(observations).chunk(2, dim=1)
    torch.testing.assert_close(log_std.exp(), torch.full_like(mean, 0.1))
    body = encoder()
    computed = mine(body, both, ARM).outputs(observations)
    expected = both(body(observations))
    torch.testing.assert_close(
        computed, torch.cat([expected[:, :2].clamp(-1, 1), expected[:, 2:]], dim=1)
    )


@pytest.mark.parametrize(
    ("actions", "width"),
    [(spaces.MultiDiscrete([2, 3]), 5), (spaces.MultiBinary(3), 3), (KEYS, 3)],
    ids=lambda given: type(given).__name__,
)
def test_a_head_for_discrete_actions_returns_logits(actions, width, observations):
    body, head = encoder(), nn.Linear(8, width)
    source = mine(body, head, actions)
    logits = head(body(observations))
    acted, _ = source.predict(observations.numpy(), deterministic=True)
    match actions:
        case spaces.MultiBinary():
            np.testing.assert_array_equal(acted, logits > 0)
        case spaces.MultiDiscrete():
            np.testing.assert_array_equal(
                acted,
                torch.stack([logits[:, :2].argmax(dim=1), logits[:, 2:].argmax(dim=1)], dim=1),
            )
        case _:
            np.testing.assert_array_equal(acted, logits.argmax(dim=1))
    assert all(actions.contains(action) for action in source.predict(observations.numpy())[0])


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ({"encoder_": nn.Linear(5, 8)}, r"The networks of source 'mine' do not read Box\(4,\)"),
        ({"head": nn.Linear(9, 3)}, r"The networks of source 'mine' do not read Box\(4,\)"),
        (
            {"head": nn.Linear(8, 4)},
            r"The head of source 'mine' returns 4 numbers, Discrete\(3\) takes 3",
        ),
        ({"head": nn.Linear(8, 5), "actions": ARM}, "do not read|says"),
        ({"encoder_": nn.Flatten(0)}, "do not read"),
    ],
)
def test_modules_that_do_not_fit_the_spaces_are_refused(modules, sentence):
    with pytest.raises(SpaceMismatch, match=sentence):
        mine(**modules)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"name": "a b"}, "A source cannot be described so: .*name String should match"),
        ({"colour": "blue"}, "colour Extra inputs are not permitted"),
        ({"observation_space": None}, "observation_space Input should be a valid dictionary"),
        ({"steps": "many"}, "steps Input should be a valid integer"),
    ],
)
def test_a_description_that_is_no_cards_is_refused(description, sentence):
    with pytest.raises(BadConfig, match=sentence):
        mine(**description)


def test_statistics_given_with_modules_normalise_and_clip(observations):
    mean, var = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 9.0, 1.0, 0.25])
    body = encoder()
    source = mine(body, statistics={"": (mean, var)})
    seen = ((observations.numpy() - mean) / np.sqrt(var + 1e-8)).clip(-10, 10)
    torch.testing.assert_close(source.features(observations), body(torch.as_tensor(seen).float()))
    with pytest.raises(
        SpaceMismatch, match=r"The statistics are of shape \(3,\), the source observes Box\(4,\)"
    ):
        mine(statistics={"": (mean[:3], var[:3])})


@pytest.mark.parametrize("head", [nn.Linear(8, 3), None], ids=["with a head", "encoder alone"])
def test_a_value_head_of_the_users_is_used(head, observations):
    body, value = encoder(), nn.Linear(8, 1)
    source = Source(
        encoder=body,
        head=head,
        value=value,
        name="mine",
        observation_space=FLAT,
        action_space=KEYS if head else None,
    )
    torch.testing.assert_close(source.value(observations), value(body(observations)).squeeze(1))


def test_an_encoder_alone_has_features_and_nothing_else(observations):
    source = Source(encoder=encoder(), name="mine", observation_space=FLAT)
    assert source.features(observations).shape == (50, 8)
    with pytest.raises(
        SpaceMismatch,
        match="Source 'mine' is an encoder alone and has no actions; use its features",
    ):
        source.outputs(observations)
    with pytest.raises(
        SpaceMismatch,
        match="Source 'mine' is an encoder alone and has no actions; use its features",
    ):
        source.predict(observations.numpy())
    with pytest.raises(SpaceMismatch, match="Source 'mine' has no value or Q head"):
        source.value(observations)


def test_modules_without_weights_are_a_source():
    source = Source(
        encoder=nn.Flatten(),
        head=nn.Identity(),
        name="mine",
        observation_space=spaces.Box(-1, 1, (3,)),
        action_space=KEYS,
    )
    assert source.predict(np.array([0.0, 1.0, -1.0], np.float32), deterministic=True)[0] == 1


def test_frozen_sources_have_no_parameters_and_tuned_ones_do():
    for model in (untrained(PPO), untrained(SAC), untrained(DQN, actions=KEYS)):
        source = Hub.from_agents([model])[0]
        assert list(source.parameters()) == []
        assert not any(
            tensor.requires_grad for tensor in source.state_dict(keep_vars=True).values()
        )
        assert (
            len(list(Source.from_card(source.card, source.tensors(), frozen=False).parameters()))
            >= 4
        )


def test_a_frozen_source_gives_no_gradient_but_lets_one_through():
    source = mine()
    observations = torch.randn(3, 4, requires_grad=True)
    source.outputs(observations).square().sum().backward()
    assert observations.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in source.state_dict(keep_vars=True).values())


def test_a_frozen_batch_norm_stays_bit_for_bit_in_training_mode(observations):
    source = mine(with_batch_norm())
    before, computed = source.tensors(), source.features(observations)
    source.train()
    assert not any(part.training for part in source.modules())
    source.features(observations * 3 + 1)
    assert same(source.tensors(), before)
    assert torch.equal(source.features(observations), computed)


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC], ids=lambda algorithm: algorithm.__name__)
def test_training_leaves_a_batch_norm_as_it_was(algorithm, tmp_path):
    actions = KEYS if algorithm is DQN else ARM
    source = mine(with_batch_norm(), nn.Linear(8, 3 if algorithm is DQN else 2), actions)
    before, digest = source.tensors(), source.card.sha256
    learning = (
        {"n_steps": 16, "batch_size": 8}
        if algorithm is PPO
        else {"learning_starts": 4, "buffer_size": 64, "batch_size": 8}
    )
    learning |= {"target_update_interval": 4, "tau": 0.5} if algorithm is DQN else {}
    model = algorithm(
        env=Noise(FLAT, actions),
        device="cpu",
        **learning,
        **Hub([source]).agent(algorithm, level="features" if algorithm is DQN else None),
    )
    model.learn(32)
    assert same(source.tensors(), before)
    assert hashlib.sha256(source.to_bytes()).hexdigest() == digest
    held = [part for part in model.policy.modules() if isinstance(part, Source)]
    assert held
    assert all(same(part.tensors(), before) for part in held)


def test_a_batch_norm_may_be_frozen_or_tuned_from_the_same_file(observations):
    register_network("tests.batch-norm", lambda card: Networks(with_batch_norm(), nn.Linear(8, 3)))
    source = mine(with_batch_norm(), builder="tests.batch-norm")
    tuned = Source.from_card(source.card, source.tensors(), frozen=False)
    torch.testing.assert_close(tuned.features(observations), source.features(observations))
    again = Source.from_card(source.card, tuned.tensors())
    torch.testing.assert_close(again.features(observations), source.features(observations))
    tuned.train()
    tuned.features(observations)
    assert not same(tuned.tensors(), source.tensors())


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM], ids=lambda layer: layer.__name__)
def test_a_recurrent_layer_inside_an_encoder_has_the_weights_that_were_loaded(layer, observations):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(2, 8, batch_first=True)

        def forward(self, rows):
            return self.layer(rows.view(-1, 2, 2))[0][:, -1]

    register_network(f"tests.{layer.__name__}", lambda card: Networks(Recurrent(), nn.Linear(8, 3)))
    body = Recurrent()
    source = mine(body, builder=f"tests.{layer.__name__}")
    torch.testing.assert_close(source.features(observations), body(observations))
    torch.testing.assert_close(
        Source.from_card(source.card, source.tensors()).features(observations), body(observations)
    )


def test_a_source_without_weights_raises(observations):
    source = Source.from_card(Hub.from_agents([untrained(PPO)], names=["empty"])[0].card)
    sentence = "The weights of source 'empty' never arrived; load a saved model"
    for ask in (source.features, source.outputs, source.value):
        with pytest.raises(SourcesNotLoaded, match=sentence):
            ask(observations)
    with pytest.raises(SourcesNotLoaded, match=sentence):
        source.predict(observations.numpy())


def test_a_registered_network_comes_back_from_a_hubs_folder(tmp_path, observations):
    def build(card, *, width):
        return Networks(encoder(width), nn.Linear(width, 3), nn.Linear(width, 1))

    register_network("tests.plain", build)
    register_network("tests.plain", build)
    made = build(None, width=6)
    source = Source(
        encoder=made.encoder,
        head=made.action,
        value=made.value,
        name="mine",
        observation_space=FLAT,
        action_space=KEYS,
        builder="tests.plain",
        kwargs={"width": 6},
        task="Toy-v0",
        statistics={"": (np.ones(4), np.full(4, 2.0))},
    )
    Hub([source]).save(tmp_path / "hub")
    again = Hub.load(tmp_path / "hub")["mine"]
    assert again.card == source.card
    assert same(again.tensors(), source.tensors())
    assert torch.equal(again.outputs(observations), source.outputs(observations))
    assert torch.equal(again.value(observations), source.value(observations))


def test_two_networks_of_one_name_are_refused():
    register_network("tests.twice", lambda card: Networks(encoder()))
    with pytest.raises(
        BadConfig, match=r"Another network is registered as 'tests\.twice'; choose another name"
    ):
        register_network("tests.twice", lambda card: Networks(encoder()))


def test_options_that_a_registered_network_does_not_have_are_refused():
    register_network("tests.options", lambda card, width: Networks(encoder(width)))
    source = Source(
        encoder=encoder(),
        name="mine",
        observation_space=FLAT,
        builder="tests.options",
        kwargs={"depth": 3},
    )
    with pytest.raises(
        BadFile,
        match="The networks that the card of source 'mine' describes cannot be built .*depth",
    ):
        Source.from_card(source.card, source.tensors())


def test_a_source_that_exists_in_its_process_alone_is_refused_when_it_is_loaded(tmp_path):
    Hub([mine()]).save(tmp_path / "hub")
    with pytest.raises(
        BadFile,
        match=r"Source 'mine' needs a registered network\. .* Call hubrl\.register_network first",
    ):
        Hub.load(tmp_path / "hub")
