"""The search: what to try, trying it, and the processes that do."""
