"""Bytes to bytes: envelopes, key names, key pages, signatures, shares, sealed files.  No network, disk or clock."""
