"""User preference alignment: first the language of queries (pretrain), then preferences (RWR)."""
