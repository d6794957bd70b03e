"""KMIP: the wire form, and with it what its clients may ask (OASIS KMIP 1.0-1.4, 2.0, 2.1)."""
