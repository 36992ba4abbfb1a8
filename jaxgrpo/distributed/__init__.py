"""The device mesh, and several processes that train together."""
