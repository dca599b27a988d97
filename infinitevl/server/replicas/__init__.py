"""Several servers behind one address: an ingress, and replicas that Ray Serve places and restarts."""
