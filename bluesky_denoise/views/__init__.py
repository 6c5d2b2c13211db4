"""Frames for people: fitted to a screen, drawn beside each other, found again."""
