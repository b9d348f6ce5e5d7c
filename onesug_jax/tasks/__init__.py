"""From logs to fixed-shape examples: vocabulary, features, SeqIO tasks, cache, loader."""
