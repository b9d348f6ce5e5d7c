"""Decoding: candidate scores, beam search, and constraints on its output."""
