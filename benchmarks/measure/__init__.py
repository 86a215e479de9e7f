"""Speed, memory and latency."""
