"""Pictures of any kind: opened as RGB, scaled, and cut into patches."""
