"""What stands between a node and its federation, examined link by link."""
