"""The demonstration federation: semi-synthetic photographs, hospitals and their runner."""
