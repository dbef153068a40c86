"""The server: a model behind the interfaces that software already uses. Needs the extra `server`."""
