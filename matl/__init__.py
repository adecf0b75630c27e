"""MATL: the library a researcher imports."""
