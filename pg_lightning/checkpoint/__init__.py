"""What may be believed of a checkpoint: pure functions that look at a file, its structure, and the paths in it.

A checkpoint is data from anyone. It is checked before anything is created from it. No Lightning: a policy is loaded
without it.
"""
