"""The transparency log's arithmetic and formats: pure functions, no storage."""
