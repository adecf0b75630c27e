"""What the coordinator decides, as pure functions of values; no I/O, clock or chance."""
