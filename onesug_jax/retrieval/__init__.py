"""What a request is shown of the shop: tables of queries and prefixes, related queries."""
