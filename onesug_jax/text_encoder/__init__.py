"""The text encoder: text to unit vectors, aligned on mined pairs (PAPER.md section 2)."""
