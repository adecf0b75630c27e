"""The robustness evidence: every attack on simulated federations, and what it comes to."""
