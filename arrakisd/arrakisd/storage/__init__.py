"""What outlives machines: images, templates, snapshots, layers, archives, tokens."""
