"""Base and user images: how they are described, built and kept."""
