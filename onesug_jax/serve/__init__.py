"""The trained model behind a search box: engine, HTTP, memory of users, one page."""
