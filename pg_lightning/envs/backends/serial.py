"""Environments that step one after the other, with no more between two of them than the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from pg_lightning.envs.contract import READ, Capabilities


class SerialVectorEnv(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv` for array observations, without what costs time and is not read here.

    Of the infos it gathers only `READ`: the five that each HalfCheetah gives take as long as a third of its physics.
    The arrays that `step` returns are written anew by the next; a final observation is a copy.
    """

    capabilities = Capabilities(seeds="per_env", can_save_state="by_replay", can_reset_some=True)

    def step(self, actions: Any) -> tuple[Any, ...]:
        """As Gymnasium's, whose own code runs where ended environments are not reset within the step."""
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return super().step(actions)
        infos: dict[str, Any] = {}
        observations: Any = self._observations
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            observation, self._rewards[i], terminated, truncated, info = env.step(action)
            self._terminations[i], self._truncations[i] = terminated, truncated
            if terminated or truncated:
                infos = self._add_info(infos, {"final_obs": np.array(observation)}, i)
                observation, info = env.reset()
            np.copyto(observations[i], observation)
            if info:
                infos = self._add_info(infos, info, i)
        return observations, self._rewards, self._terminations, self._truncations, infos

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        read = {key: env_info[key] for key in READ if key in env_info}
        return super()._add_info(vector_infos, read, env_num) if read else vector_infos
