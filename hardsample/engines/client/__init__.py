"""What talks to an OpenAI-compatible server: requests in flight, the one retry policy, and reading replies."""
