"""Architectures that people deploy, built from their configs with seeded random weights."""
