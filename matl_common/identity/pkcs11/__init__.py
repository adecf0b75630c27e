"""Keys that never leave a PKCS#11 token: their URIs, sessions with a token, and what it does."""
