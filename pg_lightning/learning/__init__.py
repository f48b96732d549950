"""Learning: the base module of all algorithms, its learner, and the parts around an update: counters, checks, logs."""

from pg_lightning.learning.actor import log_probs
from pg_lightning.learning.learner import Learner
from pg_lightning.learning.module import PolicyGradientModule
from pg_lightning.learning.targets import Normalize, log_probs_of, make_batch

__all__ = ["Learner", "Normalize", "PolicyGradientModule", "log_probs", "log_probs_of", "make_batch"]
