"""Readers: samples from folders, lists, archives, shards and hubs, behind one call."""
