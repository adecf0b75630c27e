"""The coordinator on the wire: authenticate, parse, call a use case, format.

``guard`` decides who may call what, ``statuses`` what an error looks like outside,
``federation`` and ``operations`` are the servicers, ``server`` puts them together.
"""
