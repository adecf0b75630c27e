"""Reading, telling and verifying the transparency log, from a database, a daemon or a bundle."""
