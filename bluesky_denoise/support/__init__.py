"""What knows nothing of runs: files, memory, hashes of frames."""
