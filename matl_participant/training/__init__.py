"""Local training under differential privacy; runs in a worker process only."""
