"""What knows nothing of frames or runs: files, memory, hashes."""
