"""Ramify as applications of Ray Serve."""
