"""Scoring suggestion lists: metrics, baselines, the evaluator over a split, and the report."""
