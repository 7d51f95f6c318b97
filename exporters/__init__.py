"""A Network written for something else, or run on it: `.net` files, Lava, reports, artefact directories."""
