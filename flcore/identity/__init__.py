"""Identities in a federation: certificates, the authority that signs them, and the server's checks of peers.

Only this package imports `cryptography`. It has no sockets; the transport is given PEM bytes.
"""
