"""Statistics of photon counts: what Poisson noise explains, and what it does not."""
