"""``matl pki`` and ``matl keygen``: who belongs to a federation, and by which keys.

They work on files alone; no coordinator is asked, and a running one follows what is written.
No private key is ever read by another machine than the one it was made on.
"""
