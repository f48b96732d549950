"""Commands besides training: studies and comparisons of many runs, and uses of a trained policy."""
