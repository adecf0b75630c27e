"""A study's report: what its log says, verified, in one file."""
