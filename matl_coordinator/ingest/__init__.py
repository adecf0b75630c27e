"""A front end: it ends hospitals' connections and takes their uploads, for a leader elsewhere.

It keeps nothing and decides nothing, so that any number of them may be started and killed.
"""
