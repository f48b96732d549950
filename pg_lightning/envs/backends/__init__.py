"""Back-ends: vector environments that say what they can do; see `envs.contract`."""
