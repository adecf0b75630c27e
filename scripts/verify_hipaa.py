"""Probe the technical safeguards of a node: ``python verify_hipaa.py --full-audit``."""

from matl.compliance.commands import main

if __name__ == "__main__":
    main()
