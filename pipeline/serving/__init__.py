"""An exported student as a web application: the HTTP API, the page and their limits."""
