"""Where a run keeps its frames: data keys, files, exposures."""
