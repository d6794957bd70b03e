"""Nouns shared by every room: ids, instants, states, lanes, scopes, errors, and the ports for time and chance."""
