"""Wrappers around single environments."""
