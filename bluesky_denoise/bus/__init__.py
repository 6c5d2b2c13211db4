"""What a message bus may lose, and where it is found."""
