"""What a request is shown of the shop: prefix index, tables of queries and prefixes."""
