"""Metrics on physics, baselines, and a table over sets of measured frames."""
