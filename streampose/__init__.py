"""Live video pose estimation."""
