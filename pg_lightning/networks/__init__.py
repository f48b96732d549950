"""Parameters laid end to end, see `flat`."""
