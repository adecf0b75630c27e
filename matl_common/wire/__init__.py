"""Protobuf at the boundary: generated code, and its conversion to and from our values."""
