"""Results of runs: learning curves, estimates with intervals, and plots."""
