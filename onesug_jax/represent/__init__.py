"""Prefix2Query representation enhancement: encoder, semantic ids, related queries."""
