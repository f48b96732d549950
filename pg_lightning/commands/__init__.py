"""What people do beside training: studies and comparisons of many runs, and a trained policy put to use."""
