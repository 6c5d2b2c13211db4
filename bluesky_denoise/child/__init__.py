"""The child process that denoises, and what the RunEngine's process knows of it."""
