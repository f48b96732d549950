"""Environments: vector environments from an id, and small tasks with known answers."""

from pg_lightning.envs.backends.vectorised import AutoresetName
from pg_lightning.envs.choice import choose_backend
from pg_lightning.envs.make import BACKENDS, Backend, make_env, make_vector_env
from pg_lightning.envs.seeds import env_seed

__all__ = ["BACKENDS", "AutoresetName", "Backend", "choose_backend", "env_seed", "make_env", "make_vector_env"]
