"""Released code beside ours, on the same inputs."""
