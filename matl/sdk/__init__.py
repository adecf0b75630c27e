"""What the SDK is made of; ``matl`` offers it. Nothing here is for importing by name."""
