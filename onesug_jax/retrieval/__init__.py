"""Inputs of a request that come from the shop: prefix index, tables of queries and prefixes."""
