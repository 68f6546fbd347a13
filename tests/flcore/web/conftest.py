"""The federation of a test, as in the tests of the federation."""

from tests.flcore.federation.conftest import federation, federation_in

__all__ = ["federation", "federation_in"]
