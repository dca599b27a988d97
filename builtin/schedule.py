"""How far a run is, by the clock or by steps, and what follows from it."""

import math
import time

from builtin.recipe import Recipe

_LONGEST_STEP = 1.0  # seconds; what takes longer was compiling and does not count


class Clock:
    """Progress 0..1 of a run: seconds of training over the recipe's minutes, or steps over `num_steps` if
    given."""

    def __init__(self, minutes: float, num_steps: int | None, step: int = 0, seconds: float = 0.0):
        self.limit, self.num_steps = minutes * 60, num_steps
        self.step, self.seconds = step, seconds
        self._last = time.perf_counter()

    def tick(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        self.seconds += min(now - self._last, _LONGEST_STEP)
        self._last = now
        self.step += 1

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        share = self.seconds / self.limit if self.num_steps is None else self.step / self.num_steps
        return min(1.0, share)

    @property
    def seconds_left(self) -> float:
        """Training seconds to go, as far as the pace tells."""
        return self.seconds / max(self.progress, 1e-6) * (1 - self.progress)


def is_dense(recipe: Recipe, progress: float) -> bool:
    """Whether the run is still opening the model's eyes."""
    return progress < recipe.dense_share


def joint_progress(recipe: Recipe, progress: float) -> float:
    """Progress 0..1 of the second phase."""
    return max(0.0, (progress - recipe.dense_share) / (1 - recipe.dense_share))


def learning_rate(recipe: Recipe, progress: float, phase_step: int) -> float:
    """Warm-up by steps, then a line down to a third in the dense phase, a cosine to 1 % in the joint one."""
    warm = min(1.0, (phase_step + 1) / recipe.warm_up_steps)
    if is_dense(recipe, progress):
        return recipe.dense_learning_rate * warm * (1 - 0.67 * progress / recipe.dense_share)
    cosine = 0.5 + 0.5 * math.cos(math.pi * joint_progress(recipe, progress))
    return recipe.learning_rate * warm * (0.01 + 0.99 * cosine)
