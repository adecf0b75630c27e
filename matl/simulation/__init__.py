"""Federations simulated in one process: real admission, trust, rules, privacy and rounds.

Hospitals train and attackers craft here; what a coordinator decides is decided by the
coordinator's own code. Draws nothing from the system's randomness: a seed gives one result.
"""
