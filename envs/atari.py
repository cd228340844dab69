"""Atari games whose mode and difficulty are keyword arguments.

Importing this module registers `hubrl/<Game>-v0` for every game of ale-py that one can play alone;
through Gymnasium's own notation one line does both: `gym.make("envs.atari:hubrl/Pong-v0", mode=0,
difficulty=1, full_action_space=True)`. The ids are the bare game, one frame a step and no sticky
actions: skipping, scaling and stacking are SB3's (`preprocessing: atari` in a config), which would
skip 16 frames a step on top of ale-py's own `ALE/<Game>-v5`.
"""

from typing import Any

import gymnasium as gym

try:
    from ale_py.env import AtariEnv
except ImportError as error:
    raise ImportError("Atari games need ale-py: install hubrl[atari].") from error


def atari(
    game: str, mode: int | None = None, difficulty: int | None = None, **kwargs: Any
) -> AtariEnv:
    """A game of ale-py.

    Args:
        game: Its name in snake case, as ale-py has it.
        mode: One of the game's modes; its own default if not given.
        difficulty: One of the game's difficulties; its own default if not given.
        kwargs: The rest goes to ale-py's class; `full_action_space=True` gives every game the same
            18 actions.

    Raises:
        ValueError: If the game has no such mode or difficulty.
    """
    try:
        return AtariEnv(game, mode=mode, difficulty=difficulty, **kwargs)
    except RuntimeError as error:
        ale = AtariEnv(game).ale
        modes, difficulties = ale.getAvailableModes(), ale.getAvailableDifficulties()
        known = f"modes are {modes}, its difficulties {difficulties}"
        raise ValueError(
            f"mode={mode}, difficulty={difficulty} was given for {game}; its {known}."
        ) from error


for _spec in [spec for spec in gym.registry.values() if spec.namespace == "ALE"]:
    _bare = {**_spec.kwargs, "frameskip": 1, "repeat_action_probability": 0.0}
    gym.register(f"hubrl/{_spec.name}-v0", entry_point="envs.atari:atari", kwargs=_bare)
