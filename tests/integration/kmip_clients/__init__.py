"""KMIP clients that nobody here wrote, over real TLS."""
