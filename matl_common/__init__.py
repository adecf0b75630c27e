"""What the coordinator, the participants and the SDK share; imports none of them.

Importing this package puts TLS 1.2 out of reach of gRPC in the whole process,
provided that it happens before ``import grpc``; ``identity.tls`` refuses to make
credentials where it did not. A program that imports grpc imports this first.
"""

import os
import sys

# gRPC's Python API has no minimum TLS version, but its one list of cipher suites
# governs TLS 1.2 only: a suite for RSA certificates cannot be negotiated with the
# ECDSA certificates of this project, and TLS 1.3 is left. gRPC reads the variable
# once, when it is imported.
TLS_SUITES_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
TLS_SUITES = "ECDHE-RSA-AES256-GCM-SHA384"

if "grpc" not in sys.modules:
    os.environ[TLS_SUITES_VARIABLE] = TLS_SUITES
