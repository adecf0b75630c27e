"""The operators' commands, one file a subject; `matl.cli` puts them together."""
