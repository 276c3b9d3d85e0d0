"""Runs models on the CPU and compares what they compute; the proof and `verify` stand on it."""
