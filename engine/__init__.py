"""The control process: configuration, supervisor, HTTP, health and metrics. Start reading in README.md."""
