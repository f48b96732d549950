"""Our serial vector environment beside Gymnasium's: the same numbers, fewer infos."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from pg_lightning.envs.backends.serial import SerialVectorEnv
from pg_lightning.errors import UserError


class Countdown(gym.Env):
    """Ends, or is cut, after a random number of steps; reuses its observation array; tells more than one wants."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, actions):
        self.action_space = actions
        self.obs = np.zeros(2, np.float32)

    def _info(self):
        return {"action_mask": np.array([1, self.left % 2], np.int8), "left": self.left, "nested": {"a": 1.0}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        self.obs[:] = self.left, 0
        return self.obs, self._info()

    def step(self, action):
        self.left -= 1
        self.obs[:] = self.left, np.sum(action)
        cut = self.left == 0 and self.np_random.random() < 0.5
        return self.obs, float(self.left), self.left == 0 and not cut, cut, self._info()


ACTIONS = [spaces.Discrete(2), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,), np.float32)]


@pytest.mark.parametrize("actions", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_it_is_gymnasiums_but_for_the_infos_that_nobody_reads(mode, actions):
    ours, theirs = (
        make([lambda: Countdown(actions)] * 3, copy=False, autoreset_mode=mode)
        for make in (SerialVectorEnv, SyncVectorEnv)
    )
    steps = [env.reset(seed=[1, 2, 3]) for env in (ours, theirs)]
    ours.action_space.seed(0)
    ends = 0
    for _ in range(60):
        for mine, other in zip(*[step[:-1] for step in steps], strict=True):
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
        infos, others = steps[0][-1], steps[1][-1]
        assert set(infos) <= {"action_mask", "_action_mask", "final_obs", "_final_obs"}
        np.testing.assert_array_equal(infos["action_mask"], others["action_mask"])
        assert ("final_obs" in infos) == ("final_obs" in others)
        for n in np.flatnonzero(infos.get("_final_obs", [])):
            ends += 1
            assert infos["final_obs"][n][0] == 0.0, "the array that the environment reuses, not a copy"
        action = ours.action_space.sample()
        steps = [env.step(action) for env in (ours, theirs)]
        if mode == AutoresetMode.DISABLED and (ended := steps[0][2] | steps[0][3]).any():
            steps = [env.reset(options={"reset_mask": ended.copy()}) for env in (ours, theirs)]
    assert ends > 10 or mode != AutoresetMode.SAME_STEP


def test_observations_of_another_kind_than_the_space_says_are_refused():
    class Floats(Countdown):
        observation_space = spaces.Box(0, 255, (2,), np.uint8)

        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            return obs.astype(np.uint8), info

    env = SerialVectorEnv([lambda: Floats(spaces.Discrete(2))] * 2, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"^data\.env_id: env 0 returned in step 1 an observation of dtype float32"):
        env.step(np.zeros(2, int))
