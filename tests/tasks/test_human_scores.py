import pytest

from hubrl.errors import BadConfig
from hubrl.tasks.human_scores import human_score


@pytest.mark.parametrize(
    "task", ["ALE/SpaceInvaders-v5", "SpaceInvadersNoFrameskip-v4", "SpaceInvaders-v4"]
)
def test_a_game_has_its_score_under_each_of_its_ids(task):
    assert human_score(task, {"mode": 0, "full_action_space": True}) == 1668.7


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        ("Breakthrough-v5", {}, "No human score is known of 'Breakthrough-v5'; leave out"),
        ("HalfCheetah-v5", None, "one of the 57 games"),
        ("ALE/Pong-v5", {"mode": 1}, "in another mode; leave out the method 'human'"),
        ("ALE/Pong-v5", {"mode": 1, "difficulty": 1}, "in another mode or difficulty"),
    ],
)
def test_where_no_score_is_known_a_sentence_says_so(task, kwargs, message):
    with pytest.raises(BadConfig, match=message):
        human_score(task, kwargs)
