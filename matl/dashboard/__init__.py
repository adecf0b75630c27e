"""What a federation, or one hospital of it, is doing: read, judged, and shown."""
