"""Who a peer is: keys, certificates, the allow-list and mutual TLS."""
