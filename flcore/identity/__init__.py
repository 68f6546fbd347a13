"""Who takes part in a federation: certificates, the authority that signs them, and the server's view of a peer.

Only this package imports `cryptography`. It has no sockets; the transport is given PEM bytes.
"""
