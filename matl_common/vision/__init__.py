"""Images, backbones, features and heads: the torch code both kinds of worker need.

A daemon process never imports this package, directly or otherwise; only worker
processes do.
"""
