"""Django's PostgreSQL back end, with a pool that is back as soon as the server is."""
