"""Evidence for a federation's technical safeguards: one live probe for each control.

``control`` decides and ``catalogue`` lists; both are pure. ``probes`` has a module for each subject
of 45 CFR, ``audit`` runs them, and ``report`` and ``page`` say what was found.
"""
