"""Sources that are alike, computed together: exact in float32, near in bfloat16."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from toys import CHOOSE, IMAGE, STEER, VECTOR, Toy, tiny

from hubrl import Hub, Source
from hubrl.errors import SourcesNotLoaded
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.reading import read_live
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import TargetSpec
from hubrl.sources.batched import BatchedSources, Group, MLPs, NatureCNNs
from hubrl.sources.preprocessing import Normaliser

CAMERA = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def perceptron(seed, widths=(16, 16), **kwargs):
    return read_live(tiny(PPO, Toy(), seed, net_arch=list(widths), **kwargs), f"mlp-{seed}")


def eye(seed, algorithm=PPO, **kwargs):
    return read_live(
        tiny(algorithm, Toy(IMAGE, CHOOSE), seed, net_arch=[], **kwargs), f"eye-{seed}"
    )


def normalised(source, seed):
    """The same source behind statistics of its own."""
    rng = np.random.default_rng(seed)
    statistics = {"": (rng.normal(size=4), rng.uniform(0.5, 2, size=4))}
    card = type(source.card).model_validate(
        {**source.card.to_dict(), "name": f"normal-{seed}", "normalisation": {"clip": 1.0}}
    )
    made = Source.from_card(card, None)
    normaliser = Normaliser(source.space, card.normalisation, statistics)
    made.load_weights(
        {
            **source.tensors(),
            **{f"normaliser.{name}": tensor for name, tensor in normaliser.state_dict().items()},
        }
    )
    return made


def flat(rows=8):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


def images(rows=8):
    return torch.randint(
        0, 256, (rows, 3, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def groups(encoders):
    return [(members, type(group)) for members, group in encoders._groups]


def test_in_float32_every_source_has_its_own_features_bit_for_bit():
    sources = [perceptron(1), perceptron(2), perceptron(3, (8,))]
    for computed, source in zip(BatchedSources(sources)(flat()), sources, strict=True):
        assert torch.equal(computed, source.features(flat()))


def test_perceptrons_of_the_same_widths_are_computed_together():
    sources = [
        perceptron(1),
        perceptron(2, (8,)),
        perceptron(3),
        perceptron(4, (16, 16), activation_fn=torch.nn.ReLU),
    ]
    encoders = BatchedSources(sources, "bfloat16")
    assert groups(encoders) == [([0, 2], MLPs), ([1], Group), ([3], Group)]
    for computed, source in zip(encoders(flat()), sources, strict=True):
        torch.testing.assert_close(computed, source.features(flat()), atol=1e-5, rtol=1e-5)


def test_perceptrons_behind_statistics_of_their_own_are_computed_together():
    sources = [normalised(perceptron(1), 1), perceptron(2), normalised(perceptron(3), 3)]
    encoders = BatchedSources(sources, "bfloat16")
    assert groups(encoders) == [([0, 1, 2], MLPs)]
    seen = 3 * flat()  # so that some numbers are clipped
    for computed, source in zip(encoders(seen), sources, strict=True):
        torch.testing.assert_close(computed, source.features(seen), atol=1e-5, rtol=1e-5)


def test_perceptrons_that_select_what_they_read_are_computed_together():
    wide = torch.randn(8, 9)
    sources = [perceptron(seed).adapted(observes=[8, 0, 3, 1]) for seed in (1, 2)]
    for computed, source in zip(BatchedSources(sources, "bfloat16")(wide), sources, strict=True):
        torch.testing.assert_close(computed, source.features(wide), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_sources", [1, 3])
def test_natures_are_computed_together_and_near_to_their_own(n_sources):
    sources = [eye(1), eye(2, DQN), eye(3)][:n_sources]
    encoders = BatchedSources(sources, "bfloat16")
    assert groups(encoders) == [(list(range(n_sources)), NatureCNNs)]
    for computed, source in zip(encoders(images().float() / 255), sources, strict=True):
        own = source.features(images().float() / 255)
        assert computed.shape == own.shape
        assert computed.dtype == torch.float32
        assert (computed - own).abs().max() < 0.03 * own.std()


def test_nature_cnns_compute_what_the_trainable_one_computes():
    sources = [eye(1), eye(2)]
    for computed, source in zip(
        BatchedSources(sources, "bfloat16")(images()), sources, strict=True
    ):
        network = BF16NatureCNN(CAMERA, 8)
        for mine, theirs in zip(
            network.parameters(), source.encoder.trunks.readers[0].buffers(), strict=True
        ):
            mine.data.copy_(theirs)
        torch.testing.assert_close(
            computed, network(images()), atol=0.01 * computed.std().item(), rtol=0.01
        )


def test_nature_cnns_read_bytes_with_equal_features():
    encoders = BatchedSources([eye(1), eye(2)], "bfloat16")
    assert encoders.reads_bytes
    for of_bytes, of_floats in zip(
        encoders(images()), encoders(images().float() / 255), strict=True
    ):
        assert torch.equal(of_bytes, of_floats)
    assert not BatchedSources([eye(1), eye(2)]).reads_bytes
    assert not BatchedSources([eye(1).adapted(observes="camera")], "bfloat16").reads_bytes


def test_hidden_layers_behind_a_nature_are_its_own():
    source = read_live(tiny(PPO, Toy(IMAGE, CHOOSE), 1, net_arch=[12]), "deep")
    seen = images().float() / 255
    computed, own = BatchedSources([source], "bfloat16")(seen)[0], source.features(seen)
    assert computed.shape == own.shape == (8, 12)
    assert (computed - own).abs().max() < 0.05 * own.std()


def test_weights_that_have_not_arrived_are_missed():
    empty = Source.from_card(eye(1).card)
    with pytest.raises(SourcesNotLoaded, match="never arrived"):
        BatchedSources([eye(2), empty], "bfloat16")(images())


def test_a_tuned_source_gets_its_gradient():
    card, tensors = eye(1).card, eye(1).tensors()
    source = Source.from_card(card, tensors, frozen=False)
    BatchedSources([source], "bfloat16")(images())[0].square().sum().backward()
    found = [parameter.grad for parameter in source.encoder.parameters()]
    source.zero_grad()
    source.features(images().float() / 255).square().sum().backward()
    for grad, parameter in zip(found, source.encoder.parameters(), strict=True):
        assert (grad - parameter.grad).norm() < 0.05 * parameter.grad.norm()


@pytest.mark.parametrize("observed", [VECTOR, CAMERA])
def test_pathways_computed_together_equal_each_alone(observed):
    sources = [perceptron(1), perceptron(2)] if observed is VECTOR else [eye(1), eye(2)]
    pathways = Pathways(sources, TargetSpec(observed, precision="bfloat16"), fresh=True)
    seen = flat() if observed is VECTOR else images().float() / 255
    together = pathways.compute_outputs(seen, torch.ones(8, 3, dtype=torch.bool))
    some = torch.ones(8, 3, dtype=torch.bool)
    some[0, 0] = some[1, 1] = False
    apart = pathways.compute_outputs(seen, some)
    torch.testing.assert_close(
        together[2:], apart[2:], atol=0.01 * together.std().item(), rtol=0.01
    )
    assert (apart[0, 0] == 0).all()
    assert (apart[0, 1] != 0).any()


def test_outputs_of_perceptrons_together_are_their_own():
    sources = Hub([perceptron(1), perceptron(2)])
    exact, together = (
        Pathways(sources, TargetSpec(VECTOR, "outputs", STEER, precision=precision), fresh=False)
        for precision in ("float32", "bfloat16")
    )
    wanted = [True, True]
    torch.testing.assert_close(
        exact.compute_source_outputs(flat(), wanted)[:, 1],
        sources[1].outputs(flat()),
        atol=1e-6,
        rtol=1e-6,
    )
    torch.testing.assert_close(
        together.compute_source_outputs(flat(), wanted),
        exact.compute_source_outputs(flat(), wanted),
        atol=1e-5,
        rtol=1e-5,
    )
    assert (together.compute_source_outputs(flat(), [True, False])[:, 1] == 0).all()


def steering(algorithm, seed, **kwargs):
    """An agent whose head is a Gaussian one, none of whose weights is zero."""
    model = algorithm(
        "MlpPolicy",
        Toy(VECTOR, STEER),
        seed=seed,
        device="cpu",
        **kwargs,
        policy_kwargs={"net_arch": [16, 16]},
    )
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return read_live(model, f"{algorithm.__name__}-{seed}")


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (PPO, {}),
        (PPO, {"use_sde": True}),
        (SAC, {"buffer_size": 10}),
        (SAC, {"buffer_size": 10, "use_sde": True}),
    ],
)
def test_heads_of_one_kind_are_computed_together(algorithm, kwargs):
    sources = [steering(algorithm, seed, **kwargs) for seed in (1, 2, 3)]
    sources[1] = sources[1].adapted(signs=[-1] * STEER.shape[0])
    encoders = BatchedSources(sources)
    assert encoders._groups[0][1]._heads is not None
    for computed, source in zip(encoders.outputs(flat()), sources, strict=True):
        torch.testing.assert_close(computed, source.outputs(flat()), atol=1e-5, rtol=1e-5)


def test_heads_of_several_kinds_are_computed_one_by_one():
    sources = [steering(PPO, 1), steering(PPO, 2, use_sde=True)]
    encoders = BatchedSources(sources)
    assert groups(encoders) == [([0, 1], MLPs)]
    assert encoders._groups[0][1]._heads is None
    for computed, source in zip(encoders.outputs(flat()), sources, strict=True):
        torch.testing.assert_close(computed, source.outputs(flat()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [8, 40], ids=["numpy", "torch"])
@pytest.mark.parametrize("outputs", [False, True])
def test_each_row_is_computed_by_its_own_source(rows, outputs):
    sources = [perceptron(1), normalised(perceptron(2), 2), perceptron(3)]
    group = BatchedSources(sources).gatherable("outputs")
    member = torch.arange(rows) % 3
    found = group.of_rows(flat(rows), member, outputs=outputs)
    for row, index in enumerate(member.tolist()):
        own = sources[index].outputs if outputs else sources[index].features
        torch.testing.assert_close(
            found[row], own(flat(rows))[row], atol=1e-5, rtol=1e-5, check_dtype=False
        )


def test_rows_of_sources_that_are_not_alike_are_not_gathered():
    assert BatchedSources([perceptron(1), perceptron(2, (8,))]).gatherable("features") is None
    assert BatchedSources([perceptron(1)]).gatherable("features") is None
    mirrored = [perceptron(seed).adapted(signs=[-1, 1]) for seed in (1, 2)]
    assert BatchedSources(mirrored).gatherable("outputs") is None
    assert BatchedSources(mirrored).gatherable("features") is not None
