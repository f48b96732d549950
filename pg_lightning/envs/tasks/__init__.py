"""Small environments whose answers are known."""
