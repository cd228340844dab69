"""The progress of a training, as an SB3 callback."""

from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback


class StepsBar(BaseCallback):
    """A progress bar of environment steps.

    Args:
        update: The bar, as a function of the finished steps.
        on_start: Called once, when the training starts, so that nothing is printed where it cannot.
    """

    def __init__(self, update: Callable[[int], None], on_start: Callable[[], None]) -> None:
        super().__init__()
        self.update, self.on_start = update, on_start
        self._started = False

    def _on_training_start(self) -> None:
        if not self._started:  # every leg of a run starts once more
            self.on_start()
        self._started = True

    def _on_step(self) -> bool:
        self.update(self.num_timesteps)
        return True
