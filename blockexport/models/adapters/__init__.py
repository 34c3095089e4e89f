"""Architectures that transformers has and that keep their parts where the common case does not look."""
