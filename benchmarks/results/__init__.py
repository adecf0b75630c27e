"""What docs/evidence.md shows: the studies, what they come to, and the page itself."""
