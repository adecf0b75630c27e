"""What the participant decides, as values; no I/O, clock, randomness or protobuf."""
