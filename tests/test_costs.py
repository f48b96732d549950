"""What an iteration costs, in counts that do not depend on the machine: small networks are bound by calls.

A change that fails here either made the hot path longer, or shorter than it has been: then store the new figures.
"""

import sys

import pytest
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

import pg_lightning
from pg_lightning.algorithms import A2C, PPO

PACKAGE = pg_lightning.__path__[0]
WARM_UP, COUNTED = 3, 10
PLAIN = {"num_envs": 8, "total_steps": 10**6, "eval_every_steps": 10**6, "eval_episodes": 1}

# Tensor operations in an update and the rollout before it, and calls of and by functions of this package.
COSTS = {
    "PPO": (PPO, "CartPole-v1", 32, {}, 2813.0, 2663.0),
    "PPO, normalised Box": (PPO, "Pendulum-v1", 32, {"normalize_obs": True}, 3599.6, 3078.0),
    "A2C": (A2C, "CartPole-v1", 5, {}, 256.0, 379.9),
    "A2C, one step": (A2C, "CartPole-v1", 1, {}, 200.0, 267.7),
}


class Costs(Callback, TorchDispatchMode):
    """Counts from the end of one update to the end of another."""

    def __init__(self):
        super().__init__()
        self.updates = self.operations = self.calls = 0

    def on_train_batch_end(self, trainer, *_):
        self.updates += 1
        if self.updates == WARM_UP:
            self.__enter__()
            sys.setprofile(self.count)
        if self.updates == WARM_UP + COUNTED:
            sys.setprofile(None)
            self.__exit__(None, None, None)
            trainer.should_stop = True

    def count(self, frame, event, _):
        self.calls += event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", COSTS)
def test_an_update_costs_what_it_did(name, fit):
    algorithm, env_id, num_steps, model, operations, calls = COSTS[name]
    costs = Costs()
    before = sys.getprofile()
    try:
        data = {**PLAIN, "num_steps": num_steps}
        fit(env_id, data, algorithm=algorithm, trainer={"callbacks": [costs]}, **model)
    finally:
        sys.setprofile(before)
    assert costs.updates == WARM_UP + COUNTED
    counted = costs.operations / COUNTED, costs.calls / COUNTED
    # One more per step of the environments is noticed.
    assert counted == pytest.approx((operations, calls), rel=0, abs=0.9 * num_steps), f"now {counted}"
