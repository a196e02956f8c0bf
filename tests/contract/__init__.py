"""Tests against one real local Ray cluster: front door, actors, Redis, CLI, nothing faked."""
