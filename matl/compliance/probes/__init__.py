"""A module of probes for each subject. A probe takes a site and says what it found.

Besides returning an outcome it may raise: ``BrokenControlError``, ``NotTestedError``, or what went
wrong on the way, of which ``matl.compliance.audit`` makes an outcome.
"""
