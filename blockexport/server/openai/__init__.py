"""Endpoints that the OpenAI clients call."""
