"""Evaluation of suggestion lists: metrics, baselines, the evaluator of a split, and the report."""
