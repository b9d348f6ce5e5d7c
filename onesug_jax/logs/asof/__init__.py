"""Statistics as of a request's own moment: counts, histories, candidates; one pass through time."""
