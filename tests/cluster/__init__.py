"""Clusters: what starts them, and searches on many nodes."""
