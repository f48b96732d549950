"""Back-ends: vector environments that declare their capabilities; see `envs.contract`."""
