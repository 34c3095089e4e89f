"""The parts of the report, one module each; every one has `render(material) -> str`."""
