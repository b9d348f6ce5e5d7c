"""The trained model behind a search box: engine, HTTP, users' histories, one page."""
