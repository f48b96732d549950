"""Times the published PPO of PureJaxRL, in a process and an interpreter of its own: see `throughput.py --purejaxrl`.

    git clone https://github.com/luchris429/purejaxrl
    python benchmarks/purejaxrl.py purejaxrl/purejaxrl '{"ENV_NAME": "CartPole-v1", "NUM_ENVS": 8, ...}' SEED

Needs what that source needs: jax, flax, optax, distrax, gymnax before 1.0, brax. XLA has one thread. The last line of
the output is JSON: seconds of one training after compilation and an untimed one, and the mean return of the episodes
that ended in its last rollout.
"""

import importlib.util
import json
import os
import sys
import time
from types import ModuleType

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def main() -> None:
    folder, config, seed = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    os.environ |= {"XLA_FLAGS": ONE_THREAD, "JAX_PLATFORMS": "cpu"}
    sys.path.insert(0, folder)
    if importlib.util.find_spec("navix") is None:  # imported by its wrappers, but not used by PPO
        sys.modules["navix"] = ModuleType("navix")

    import jax
    from ppo import make_train

    train = jax.jit(make_train(config)).lower(jax.random.PRNGKey(seed)).compile()
    jax.block_until_ready(train(jax.random.PRNGKey(seed)))
    start = time.perf_counter()
    metrics = jax.block_until_ready(train(jax.random.PRNGKey(seed + 1)))["metrics"]
    seconds = time.perf_counter() - start
    ended = metrics["returned_episode"][-1]
    mean = float(metrics["returned_episode_returns"][-1][ended].mean()) if ended.any() else None
    print(json.dumps({"seconds": seconds, "return_mean": mean}))


if __name__ == "__main__":
    main()
