"""Environments: vector environments from an id, and small ones whose answers are known."""

from pg_lightning.envs.make import AutoresetName, Backend, choose_backend, make_env, make_vector_env
from pg_lightning.envs.seeds import env_seed

__all__ = ["AutoresetName", "Backend", "choose_backend", "env_seed", "make_env", "make_vector_env"]
