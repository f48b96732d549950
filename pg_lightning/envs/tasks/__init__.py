"""Small environments with known answers."""
