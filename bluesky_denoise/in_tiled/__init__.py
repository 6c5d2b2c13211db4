"""Runs as they are in Tiled: how derived ones are written, how archived ones are read."""
