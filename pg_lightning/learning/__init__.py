"""Learning: the module that every algorithm is, its learner, and what surrounds an update: counters, checks, logs."""

from pg_lightning.learning.learner import Learner
from pg_lightning.learning.module import PolicyGradientModule
from pg_lightning.learning.targets import Normalize, make_batch

__all__ = ["Learner", "Normalize", "PolicyGradientModule", "make_batch"]
