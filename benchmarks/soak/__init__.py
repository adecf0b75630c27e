"""What a federation uses, round after round, while faults hit it."""
