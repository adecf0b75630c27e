"""Judging models and updates on the holdout set; runs in a process of its own."""
