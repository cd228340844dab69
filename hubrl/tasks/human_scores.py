"""Scores of a human player in Atari games, by which the field normalises returns."""

import re
from collections.abc import Mapping
from typing import Any

from hubrl.errors import BadConfig

HUMAN_SCORES = {
    "Alien": 7127.7,
    "Amidar": 1719.5,
    "Assault": 742.0,
    "Asterix": 8503.3,
    "Asteroids": 47388.7,
    "Atlantis": 29028.1,
    "BankHeist": 753.1,
    "BattleZone": 37187.5,
    "BeamRider": 16926.5,
    "Berzerk": 2630.4,
    "Bowling": 160.7,
    "Boxing": 12.1,
    "Breakout": 30.5,
    "Centipede": 12017.0,
    "ChopperCommand": 7387.8,
    "CrazyClimber": 35829.4,
    "Defender": 18688.9,
    "DemonAttack": 1971.0,
    "DoubleDunk": -16.4,
    "Enduro": 860.5,
    "FishingDerby": -38.7,
    "Freeway": 29.6,
    "Frostbite": 4334.7,
    "Gopher": 2412.5,
    "Gravitar": 3351.4,
    "Hero": 30826.4,
    "IceHockey": 0.9,
    "Jamesbond": 302.8,
    "Kangaroo": 3035.0,
    "Krull": 2665.5,
    "KungFuMaster": 22736.3,
    "MontezumaRevenge": 4753.3,
    "MsPacman": 6951.6,
    "NameThisGame": 8049.0,
    "Phoenix": 7242.6,
    "Pitfall": 6463.7,
    "Pong": 14.6,
    "PrivateEye": 69571.3,
    "Qbert": 13455.0,
    "Riverraid": 17118.0,
    "RoadRunner": 7845.0,
    "Robotank": 11.9,
    "Seaquest": 42054.7,
    "Skiing": -4336.9,
    "Solaris": 12326.7,
    "SpaceInvaders": 1668.7,
    "StarGunner": 10250.0,
    "Surround": 6.5,
    "Tennis": -8.3,
    "TimePilot": 5229.2,
    "Tutankham": 167.6,
    "UpNDown": 11693.2,
    "Venture": 1187.5,
    "VideoPinball": 17667.9,
    "WizardOfWor": 4756.5,
    "YarsRevenge": 54576.9,
    "Zaxxon": 9173.3,
}
"""Mean scores of a professional game tester (Mnih et al. 2015; Wang et al. 2016, arXiv 1511.06581,
for the games that the former leaves out)."""

ID = re.compile(r"(?:ALE/)?(?P<game>[A-Za-z]+?)(?:Deterministic|NoFrameskip)?-v\d+")


def human_score(task: str, kwargs: Mapping[str, Any] | None = None) -> float:
    """The score of a human player in an Atari game as it is by default.

    Args:
        task: Id of the game, such as `SpaceInvadersNoFrameskip-v4` or `ALE/SpaceInvaders-v5`.
        kwargs: Arguments of its environment.

    Raises:
        BadConfig: If no score is known of the task, or of its mode or difficulty.
    """
    match = ID.fullmatch(task)
    if match is None or match["game"] not in HUMAN_SCORES:
        raise BadConfig(
            f"No human score is known of {task!r}; leave out the method 'human', or take one of "
            "the 57 games of Wang et al. (2016)."
        )
    changed = [name for name in ("mode", "difficulty") if (kwargs or {}).get(name)]
    if changed:
        raise BadConfig(
            f"No human score is known of {task!r} in another {' or '.join(changed)}; leave out the "
            "method 'human'."
        )
    return HUMAN_SCORES[match["game"]]
