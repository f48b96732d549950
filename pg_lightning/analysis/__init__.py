"""What runs have come to: learning curves, estimates with intervals, and pictures of them."""
