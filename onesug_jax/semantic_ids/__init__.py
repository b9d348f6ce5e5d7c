"""Semantic ids: vectors to codes by a residual quantiser (PAPER.md section 2.4)."""
