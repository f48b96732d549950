"""Policy gradients on Lightning: rollouts in, every Trainer feature out."""

__version__ = "0.1.0"
